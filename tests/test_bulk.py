"""`osdface bulk`: places on disks and remote storage, what a worker does, and all of it on a local Ray."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from osdface_core import OSDFacePipeline
from osdface_core.cli import batch, bulk, ray_data, restore
from osdface_core.cli.inputs import Missing
from osdface_core.cli.main import main
from osdface_core.cli.places import Disk, Store, check_apart, place
from osdface_core.cli.ray_data import Attempts, Worker, list_photos
from osdface_core.errors import ConfigError, ImageError
from osdface_core.files import replacing, write_text

Run = Callable[..., int]
AS_THE_FIXTURE = ["--engine", "eager", "--dtype", "fp32", "--device", "cpu"]


def contents(folder: str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def put(portraits: Any, count: int) -> None:
    """Make small photos of two people in `in`, all different, one of them broken."""
    Path("in/below").mkdir(parents=True)
    for number in range(count):
        name = f"in/{'below/' * (number % 2)}{number}.png"
        Image.fromarray(portraits).resize((120, 60 + number)).save(name)
    Path("in/broken.png").write_text("no picture")


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bulk.add_arguments(parser)
    return parser.parse_args(argv)


# --- the command


def test_what_restore_has_is_the_same_here() -> None:
    parser = argparse.ArgumentParser()
    restore.add_arguments(parser)
    theirs, ours = vars(parser.parse_args(["in", "-o", "out"])), vars(parsed("in", "out"))
    assert {name: ours[name] for name in theirs if name in ours and name != "inputs"} == {
        name: value for name, value in theirs.items() if name in ours and name not in ("inputs", "out")
    } | {"out": "out"}
    assert set(ours) - set(theirs) == {"photos", "ray", "workers"}
    assert set(theirs) - set(ours) == {"shard", "devices"}


def test_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["bulk", str(tmp_path), str(tmp_path / "out")]) == 2
    assert 'which osdface bulk needs: pip install "osdface[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none", "out"], "none: no such folder"),
        (["in", "in"], "in has the inputs, which are never overwritten"),
        (["in", "file"], "file is a file; give a folder"),
        (["in", "nothing://bucket/a"], "nothing://bucket/a cannot be opened"),
        (["memory://a/b", "memory://a"], "memory://a has the inputs"),
        (["in", "out", "--ray", "ray://head:10001"], "a machine of the cluster only; run `ray job submit"),
        (["in", "out", "--strength", "2"], "expected 0..1"),
        (["in", "out", "--workers", "0"], "--workers: 0: expected at least 1"),
        (["in", "out", "--workers", "two"], "--workers: two: expected at least 1"),
        (["in", "out", "--report", "in"], "--report in is a folder; give a file name"),
        (["in", "out", "--report", "r.png"], "--report r.png has the name of a photo"),
        (["in", "out", "--aligned", "--upscale", "2"], "leave --upscale out"),
    ],
)
def test_wrong_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("in").mkdir()
    Path("file").touch()
    try:
        assert main(["bulk", *options]) == 2
    except SystemExit as stopped:  # argparse
        assert stopped.code == 2
    assert message in capsys.readouterr().err


# --- places


def test_a_remote_folder() -> None:
    store = place("memory://remote/photos")
    assert isinstance(store, Store)
    files, _ = store.open()
    for name in ("a.png", "b.gif", "b.png", "c/d.JPG", "c/notes.txt", ".hidden/e.png", "c/.f.png"):
        files.pipe(f"/remote/photos/{name}", name.encode())
    assert list(store.photos(Disk(Path("out")))) == [
        ("a.png", "a.png"), ("b.gif", "b.gif.png"), ("b.png", "b.png"), ("c/d.JPG", "c/d.JPG"),
    ]  # fmt: skip
    empty = list(Store("memory://remote/photos/c/none").photos(store))
    assert [type(item) for item in empty] == [Missing, Missing]
    assert store.named("c/d.JPG") == "memory://remote/photos/c/d.JPG"


def test_to_and_from_a_remote_folder(tmp_path: Path) -> None:
    """Written whole or not at all, on what fsspec calls a file system with transactions, too."""
    store = Store((tmp_path / "there").as_uri())
    (tmp_path / "a.png").write_bytes(b"first")
    store.keep("x/y/a.png", tmp_path / "a.png")
    store.fetch("x/y/a.png", tmp_path / "back.png")
    assert (tmp_path / "back.png").read_bytes() == b"first"
    assert store.changed("x/y/a.png") == pytest.approx(Disk(tmp_path / "there").changed("x/y/a.png"), abs=1e4)
    with pytest.raises(OSError):
        store.changed("x/b.png")
    with pytest.raises(ImageError, match=r"there/x/b.png cannot be fetched .*: check name, permissions"):
        store.fetch("x/b.png", tmp_path / "back.png")
    with pytest.raises(ImageError, match="cannot be written"):
        store.keep("x/y/a.png/b.png", tmp_path / "a.png")
    assert contents(str(tmp_path / "there")) == {"x/y/a.png": b"first"}


def test_no_result_takes_the_place_of_a_photo(tmp_path: Path) -> None:
    """`photos/a/a/x.png` would be written to `photos/a/x.png`."""
    for name in ("a/x.png", "a/a/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    check_apart(Disk(tmp_path / "a"), Disk(tmp_path))
    free, taken = Disk(tmp_path / "a").photos(Disk(tmp_path))
    assert free == ("x.png", "x.png")
    assert isinstance(taken, Missing) and "is an input" in taken.reason
    check_apart(Disk(tmp_path / "a"), Disk(tmp_path / "a" / "out"))
    with pytest.raises(ConfigError, match="has the inputs"):
        check_apart(Disk(tmp_path), Store((tmp_path / "out").as_uri()))


# --- a worker


def test_threads_write_files_whose_long_names_begin_alike(tmp_path: Path) -> None:
    with (
        replacing(tmp_path / f"{'x' * 80}1.png") as one,
        ThreadPoolExecutor(1) as pool,
    ):
        one.write_text("1")
        pool.submit(write_text, tmp_path / f"{'x' * 80}2.png", "2").result()
    assert sorted(contents(str(tmp_path)).values()) == [b"1", b"2"]


@pytest.fixture
def worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: OSDFacePipeline
) -> Callable[..., Worker]:
    """A worker in this process, as for a GPU: several photos at a time, in threads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_data, "load", lambda args: tiny_pipeline)
    monkeypatch.setattr(restore, "load", lambda args: tiny_pipeline)
    monkeypatch.setattr(batch, "PAUSE", 0.0)

    def make(source: str, out: str, *options: str, note: Any = None) -> Worker:
        args = parsed(source, out, "--detector", "mtcnn", *options)
        arguments = vars(args) | {"folder": str(tmp_path), "cpus": 2, "gpus": 1}
        return Worker(arguments, note or Attempts().note)

    return make


def told(worker: Worker) -> list[dict[str, Any]]:
    """What the worker says about all that is listed."""
    rows = [out for row in list_photos({}, vars(worker.args)) for out in worker(row)]
    return [record for row in rows for record in json.loads(row["records"][0])]


def test_faces_of_several_photos_together(
    worker: Callable[..., Worker], portraits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(portraits, 5)
    assert main(["restore", "in", "-o", "one", "--detector", "mtcnn"]) == 1
    sizes: list[int] = []
    run = batch.restore_crops
    monkeypatch.setattr(
        batch, "restore_crops", lambda pipe, crops, *rest: sizes.append(len(crops)) or run(pipe, crops, *rest)
    )
    records = told(worker("in", Path("two").absolute().as_uri()))
    assert max(sizes) > 2, "more faces than a photo has"
    assert contents("one") == contents("two")
    assert sorted(record["input"] for record in records if "error" in record) == ["in/broken.png"]
    done = [record for record in records if "output" in record]
    assert len(done) == 5 and all(record["output"].startswith("file:///") for record in done)
    assert all(record["stages"].keys() == {"read", "detect", "model", "paste", "write"} for record in done)
    again = told(worker("in", Path("two").absolute().as_uri()))
    assert [record for record in again if "skipped" not in record] == [r for r in records if "error" in r]
    assert len(told(worker("in", "two", "--redo"))) == 6


def test_crops_of_several_sizes(worker: Callable[..., Worker], portraits: Any) -> None:
    put(portraits, 3)
    records = told(worker("in", "two", "--aligned"))
    assert sorted(contents("two")) == ["0.png", "2.png", "below/1.png"]
    assert sum("error" in record for record in records) == 1


def test_what_the_model_fails_on_costs_no_other(
    worker: Callable[..., Worker], portraits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(portraits, 3)
    run = batch.restore_crops

    def fails(pipe: Any, crops: Any, *rest: Any) -> Any:
        if len(crops) != 2 or not crops.mean() < fails.bound:  # type: ignore[attr-defined]
            raise ImageError("the model gives no picture")
        return run(pipe, crops, *rest)

    fails.bound = 2.0  # type: ignore[attr-defined]
    monkeypatch.setattr(batch, "restore_crops", fails)
    records = told(worker("in", "two"))
    assert sorted(contents("two")) == ["0.png", "2.png", "below/1.png"]
    fails.bound = -1.0  # type: ignore[attr-defined]
    records = told(worker("in", "two", "--redo"))
    reasons = {record["error"] for record in records}
    assert "the model gives no picture" in reasons and len(records) == 4


def test_no_model(worker: Callable[..., Worker], portraits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(portraits, 1)

    def load(args: Any) -> Any:
        raise ConfigError("no such model")

    monkeypatch.setattr(ray_data, "load", load)
    assert {"stop": "no such model"} in told(worker("in", "two"))


def test_a_photo_that_ends_its_workers(
    worker: Callable[..., Worker], portraits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its block is given out again and again, by what Ray does; in the end it is left out, the rest done."""
    put(portraits, 3)
    begin = Worker._begin

    def ends(self: Worker, name: Any, scratch: Path) -> Any:
        if name[0] == "2.png":
            raise SystemExit
        return begin(self, name, scratch)

    monkeypatch.setattr(Worker, "_begin", ends)
    attempts, records, ended = Attempts(), None, 0
    while records is None:
        try:
            records = told(worker("in", "two", note=attempts.note))
        except SystemExit:
            ended += 1
    assert ended == 1 + ray_data.ATTEMPTS, "the first attempt does not tell which photo it was"
    reasons = {record["input"]: record["error"] for record in records if "error" in record}
    assert sorted(reasons) == ["in/2.png", "in/broken.png"]
    assert reasons["in/2.png"] == "ended its worker 3 times; look at the file"
    assert sorted(contents("two")) == ["0.png", "below/1.png"]
    assert not attempts._begun, "nothing is kept of what has ended"


# --- Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of two CPUs in this process's children, as quick as other processes."""
    module = pytest.importorskip("ray", reason='Ray is not installed: pip install -e ".[ray]"')
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    module.init("local", num_cpus=2, include_dashboard=False, logging_level="error")
    yield module
    module.shutdown()


@pytest.mark.slow
def test_two_workers_on_ray(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portraits: Any, tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Bit for bit what one process gives, though a worker is killed; then nothing is left to do."""
    psutil = pytest.importorskip("psutil")
    monkeypatch.chdir(tmp_path)
    put(portraits, 20)
    model = ["--model", str(tiny_checkpoint), "--detector", "mtcnn", *AS_THE_FIXTURE]
    assert main(["restore", "in", "-o", "one", *model]) == 1
    killed: list[int] = []

    def kill() -> None:
        """End a worker once there is a first result."""
        while not list(Path("two").rglob("[0-9]*.png")):
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if "MapWorker" in "".join(process.cmdline()) and not killed:
                process.send_signal(signal.SIGKILL)
                killed.append(len(contents("two")))

    threading.Thread(target=kill, daemon=True).start()
    places = [(tmp_path / "in").as_uri(), (tmp_path / "two").as_uri()]
    command = ["bulk", *places, *model, "--workers", "2", "--report", "r.jsonl"]
    assert main(command) == 1
    assert killed and killed[0] < 20, "a worker was killed in the middle"
    assert contents("one") == contents("two")
    records = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    names = [record["input"] for record in records]
    assert len(set(names)) == len(names) >= 20, "at most one photo ends between its result and its line"
    assert [record["input"] for record in records if "error" in record] == [f"{places[0]}/broken.png"]
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("two").rglob("*.png")}
    assert main(command) == 1
    assert "0 restored, 1 failed, 20 skipped" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path("two").rglob("*.png")} == before
