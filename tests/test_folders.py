"""Large folders: streamed, continued, divided among processes, reported line by line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from osdface_core import OSDFacePipeline
from osdface_core.cli import batch, restore
from osdface_core.cli.inputs import Guard, plan
from osdface_core.cli.main import main
from osdface_core.cli.shards import Shard, parse_shard
from osdface_core.errors import ConfigError, ImageError
from osdface_core.images import PhotoSearch, find

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., int]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as `conftest.py` has it: other numbers round otherwise
AS_THE_FIXTURE = ["--engine", "eager", "--dtype", "fp32"]  # what `auto` takes rounds otherwise


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: OSDFacePipeline) -> Run:
    """`osdface restore ARGS` in an empty folder, with the small random model already loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(restore, "load", lambda args: tiny_pipeline)
    monkeypatch.setattr(batch, "PAUSE", 0.0)
    return lambda *args: main(["restore", *map(str, args), "--detector", "mtcnn"])


def put(*names: str) -> None:
    """Make small photos without a face, all different."""
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (number, 90, 60)).save(name)


def contents(folder: Path | str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def records(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# --- the listing


def test_a_folder_larger_than_a_block_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "BLOCK", 4)
    monkeypatch.chdir(tmp_path)
    names = [f"{folder}{number:02}.png" for folder in ("", "a/", "a/b/", "z/") for number in range(11)]
    put(*names)
    below = [path.as_posix() for _, path in PhotoSearch(tmp_path)]
    assert Counter(below) == Counter(names)
    monkeypatch.undo()
    below = [path.as_posix() for _, path in PhotoSearch(tmp_path)]
    assert below == names, "each folder by name, before the folders in it"


class Entry:
    """What scandir gives for a file."""

    def __init__(self, number: int) -> None:
        self.name = f"photo_{number:07}.jpg"

    def is_dir(self) -> bool:
        return False


def peak(count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Most bytes that going through a folder with so many photos takes."""

    @contextmanager
    def scandir(path: Path) -> Iterator[Iterator[Entry]]:
        yield (Entry(number) for number in range(count))

    monkeypatch.setattr(find.os, "scandir", scandir)
    tracemalloc.start()
    jobs, missing = plan(["."], Path("out"))
    guard = Guard(jobs)  # type: ignore[arg-type]
    assert not missing and len(jobs) == count and sum(1 for _ in jobs) == count
    assert not guard.refused(Path("out/none.jpg"))
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def test_memory_does_not_grow_with_the_number_of_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "BLOCK", 500)
    small = min(peak(1_000, monkeypatch) for _ in range(2))
    large = min(peak(20_000, monkeypatch) for _ in range(2))  # Python enlarges its table of names once
    assert large < 1.1 * small, (small, large)


# --- shards


def test_shards_divide_the_photos_and_never_change() -> None:
    names = [Path(f"a/{number}.png") for number in range(1000)]
    shares = [[name for name in names if Shard(index, 4).holds(name)] for index in range(4)]
    assert sorted(chain.from_iterable(shares)) == sorted(names)
    assert all(200 < len(share) < 300 for share in shares)
    first = [name for name in names if Shard(1, 4).part(0, 2).holds(name)]
    second = [name for name in names if Shard(1, 4).part(1, 2).holds(name)]
    assert first and second and sorted(first + second) == sorted(shares[1])
    # blake2b of the name, as b2sum -l 64 prints it: a run of years ago divides as one of today.
    assert [Shard(index, 7).holds(Path("a/0.png")) for index in range(7)].index(True) == B2SUM % 7


B2SUM = 0xD6D521CAD454D62C


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "0/0", "1/2/3"])
def test_wrong_shards(text: str) -> None:
    with pytest.raises(ConfigError, match="expected I/N"):
        parse_shard(text)


def test_shards_of_a_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    put(*(f"in/{number}.png" for number in range(9)))
    assert run("in", "-o", "whole") == 0
    for index in range(3):
        capsys.readouterr()
        assert run("in", "-o", "out", "--shard", f"{index}/3") == 0
        assert capsys.readouterr().err.startswith(f"shard {index}/3: ")
    assert contents("out") == contents("whole")
    assert run(*sorted(Path("in").iterdir()), "-o", "list", "--shard", "1/3") == 0
    assert 0 < len(contents("list")) < 9


# --- stopped and continued


def test_results_that_are_there_and_newer_are_left_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("in/a.png", "in/b.png", "in/sub/c.png")
    assert run("in", "-o", "out") == 0
    Path("out/b.png").unlink()
    later = Path("out/a.png").stat().st_mtime_ns + 10**9
    os.utime("in/a.png", ns=(later, later))
    capsys.readouterr()
    assert run("in", "-o", "out", "--json", "r.json") == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["out/a.png", "out/b.png"]
    assert err.splitlines() == [
        "2 restored, 0 failed, 1 skipped (their results are there and newer; --redo restores them again)"
    ]
    report = json.loads(Path("r.json").read_text())
    assert (report["done"], report["skipped"], len(report["photos"])) == (2, 1, 2)
    os.utime("in/a.png", ns=(0, 0))
    with monkeypatch.context() as patched:
        patched.setattr(restore, "load", lambda args: pytest.fail("the model was loaded"))
        assert run("in", "-o", "out") == 0
    capsys.readouterr()
    assert run("in", "-o", "out", "--redo") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_photos_that_are_named_are_restored_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    put("a.png")
    for options, said in (([], 1), ([], 1), (["--skip-existing"], 0)):
        capsys.readouterr()
        assert run("a.png", "-o", "out", *options) == 0
        assert len(capsys.readouterr().out.splitlines()) == said


def test_a_run_that_was_killed_goes_on(
    run: Run, tiny_checkpoint: Path, portraits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after a result: the next run does the rest, and all is as if nothing had been."""
    Path("in").mkdir()
    for number in range(6):
        Image.fromarray(portraits).resize((120, 60 + number)).save(f"in/{number}.png")
    options = ["-o", "out", "--crops", "crops", "--compare", "--report", "report.jsonl"]
    command = [sys.executable, "-m", "osdface_core", "restore", "in", *options]
    command += ["--model", str(tiny_checkpoint), "--device", "cpu", "--detector", "mtcnn", *AS_THE_FIXTURE]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ONE_THREAD
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout and "face" in process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert len([name for name in contents("out") if name[1:] == ".png"]) < 6
    assert run("in", *options) == 0
    assert run("in", "-o", "out2", "--crops", "crops2", "--compare") == 0
    assert _whole("out") == contents("out2") and _whole("crops") == contents("crops2")
    assert len(records("report.jsonl")) in (5, 6), "a photo may end between its result and its line"


def _whole(folder: str) -> dict[str, bytes]:
    """All but the hidden file that was being written."""
    return {name: data for name, data in contents(folder).items() if not Path(name).name.startswith(".")}


# --- the report


def test_the_report_grows_by_a_line_per_photo(run: Run) -> None:
    put("in/a.png", "in/b.png")
    Path("in/broken.png").write_text("no picture")
    Path("r.jsonl").write_text('{"cut off by a cra')
    assert run("in", "-o", "out", "--report", "r.jsonl") == 1
    _, *lines = Path("r.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [record["input"] for record in told] == ["in/a.png", "in/b.png", "in/broken.png"]
    assert "error" in told[2] and told[0]["output"] == "out/a.png"
    assert run("in", "-o", "out", "--report", "r.jsonl") == 1
    assert len(Path("r.jsonl").read_text().splitlines()) == 5, "failures are tried again, results are not"


APPEND = """
import json, sys
from pathlib import Path
from osdface_core.cli.report import append_line
for number in range(200):
    line = json.dumps({"from": sys.argv[1], "number": number, "long": sys.argv[1] * 3000})
    append_line(Path(sys.argv[2]), line)
"""


@pytest.mark.slow
def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    processes = [
        subprocess.Popen([sys.executable, "-c", APPEND, name, str(path)], cwd=ROOT) for name in "abc"
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    told = [(record["from"], record["number"]) for record in records(str(path))]
    assert sorted(told) == [(name, number) for name in "abc" for number in range(200)]


def test_a_report_that_cannot_be_written(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    put("in/a.png")
    Path("taken").touch()
    assert run("in", "-o", "out", "--report", "taken/r.jsonl") == 1
    assert "taken/r.jsonl cannot be written" in capsys.readouterr().err


# --- second attempts


@pytest.mark.parametrize("name", ["read_photo", "detect_and_align", "restore_crops", "write_photo"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), RuntimeError("CUDA out of memory"), ValueError("no")],
)
def test_what_may_pass_is_tried_once_more(
    run: Run, portraits: Any, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    Path("in").mkdir()
    Image.fromarray(portraits).resize((120, 60)).save("in/a.png")
    assert run("in", "-o", "whole") == 0
    work, calls = getattr(batch, name), []

    def fails(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ImageError("cannot be read") from error
        return work(*arguments, **options)

    monkeypatch.setattr(batch, name, fails)
    passing = not isinstance(error, ValueError)
    assert run("in", "-o", "out") == (0 if passing else 1)
    assert len(calls) == (2 if passing else 1)
    assert not passing or contents("out") == contents("whole")


# --- several devices


@pytest.mark.slow
def test_two_processes_give_what_one_gives(
    run: Run, tiny_checkpoint: Path, portraits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*next(iter(ONE_THREAD.items())))
    Path("in").mkdir()
    for number in range(6):
        Image.fromarray(portraits).resize((120, 60 + number)).save(f"in/{number}.png")
    Path("in/broken.png").write_text("no picture")
    model = ["--model", tiny_checkpoint, *AS_THE_FIXTURE]
    assert run("in", "-o", "one", "--device", "cpu", *model, "--report", "1.jsonl") == 1
    assert run("in", "-o", "two", "--devices", "cpu,cpu", *model, "--report", "2.jsonl") == 1
    assert contents("one") == contents("two")
    assert sorted(r["input"] for r in records("1.jsonl")) == sorted(r["input"] for r in records("2.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "cpu,cuda:99"], "no device cuda:99 here"),
        (["--devices", "cpu,cpu", "--json", "r.json"], "use --report with --devices"),
        (["--shard", "3/3"], "--shard 3/3: expected I/N"),
        (["--report", "r.png"], "--report r.png has the name of a photo"),
        (["--crops", "in"], "in has the inputs, which are never overwritten"),
    ],
)
def test_wrong_usage(run: Run, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    put("in/a.png")
    assert run("in", "-o", "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_result_that_is_a_link_to_an_input(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    put("in/a.png", "in/b.png")
    before = contents("in")
    Path("out").mkdir()
    Path("out/a.png").symlink_to(Path("in/b.png").resolve())
    assert run("in", "-o", "out", "--redo") == 1
    assert "out/a.png is an input and is not overwritten" in capsys.readouterr().err
    assert contents("in") == before and Path("out/b.png").exists()
