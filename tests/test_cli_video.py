"""`osdface restore film.mp4 -o out.mp4`: like a photo, with its lines, report and refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason='videos need PyAV: pip install "osdface[video]"')

from osdface_core.cli import video as video_command
from tests.clips import decoded, flat, pan, write_clip

Run = Callable[..., int]


def test_a_film_is_restored_and_reported(
    run: Run, portraits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(Path("film.mp4"), pan(portraits, 3))
    assert run("film.mp4", "-o", "out.mp4", "--crf", "30", "--json", "report.json") == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("out.mp4  3 frames  3 faces  ")
    (record,) = json.loads(Path("report.json").read_text())["videos"]
    assert (record["input"], record["output"], record["frames"]) == ("film.mp4", "out.mp4", 3)
    changed = [
        a.to_ndarray() != b.to_ndarray()
        for a, b in zip(decoded(Path("film.mp4")), decoded(Path("out.mp4")), strict=True)
    ]
    assert all(one.any() for one in changed)


def test_several_go_into_a_folder_and_one_that_fails_stops_no_other(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mp4", "b.mkv"):
        write_clip(Path(name), flat(2), sound=None)
    Path("broken.mp4").write_bytes(b"nothing")
    assert run("a.mp4", "broken.mp4", "*.mkv", "-o", "results") == 1
    assert sorted(p.name for p in Path("results").iterdir()) == ["a.mp4", "b.mkv"]
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "broken" in line)
    assert line.startswith("broken.mp4: broken.mp4 cannot be read as a video")


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_a_name_with_a_line_end_stays_on_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(Path("two\nlines.mp4"), flat(2), sound=None)
    Path("not\nsound.mp4").write_bytes(b"nothing")
    assert run("two\nlines.mp4", "not\nsound.mp4", "-o", "results") == 1
    said = capsys.readouterr()
    assert [line.split("  ")[0] for line in said.out.splitlines()] == [r"results/two\nlines.mp4"]
    assert [line[:15] for line in said.err.splitlines() if "sound" in line] == [r"not\nsound.mp4:"[:15]]


def test_ctrl_c_says_what_is_there_and_how_to_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(Path("film.mp4"), flat(12), sound=None)
    real = video_command.restore_video

    def interrupted(*args: object, progress: Callable[[int, int], None], **options: object) -> object:
        def stop(done: int, total: int) -> None:
            progress(done, total)
            if done == 5:
                raise KeyboardInterrupt

        return real(*args, progress=stop, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(video_command, "restore_video", interrupted)
    assert run("film.mp4", "-o", "out.mp4") == 130
    assert "out.mp4 holds what is done so far; the same command goes on" in capsys.readouterr().err
    assert len(decoded(Path("out.mp4"))) == 5
    monkeypatch.setattr(video_command, "restore_video", real)
    assert run("film.mp4", "-o", "out.mp4") == 0
    assert "12 frames, 5 of them before" in capsys.readouterr().out
    assert len(decoded(Path("out.mp4"))) == 12


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["photo.png", "--crf", "20", "--fps", "30"], "--crf --fps not used: the inputs are photos"),
        (["film.mp4", "--crf", "30", "--fps", "30"], "--fps not used: video files keep their own times"),
    ],
)
def test_options_that_do_nothing_are_named(
    run: Run, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(Path("film.mp4"), flat(2), sound=None)
    Image.fromarray(next(flat(1))).save("photo.png")
    assert run(*arguments, "-o", "out") == 0
    assert line in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["film.mp4", "-o", "out.mp4", "--aligned"], "--aligned is for photos"),
        (["film.mp4", "-o", "out.mp4", "--compare"], "--compare is for photos"),
        (["film.mp4", "photo.jpg", "-o", "out"], "photo.jpg is no video"),
        (["film.mp4", "b.mp4", "-o", "out.mp4"], "several inputs"),
        (["film.mp4", "./film.mp4", "-o", "out"], "several inputs would be written"),
        (["film.mp4", "-o", "out.png"], "write videos as"),
        (["film.mp4", "-o", "film.mp4"], "never overwritten"),
        (["film.mp4", "-o", "out.mp4", "--crf", "99"], "expected 0..63"),
    ],
)
def test_wrong_usage_touches_nothing(
    run: Run, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(Path("film.mp4"), flat(2), sound=None)
    before = Path("film.mp4").read_bytes()
    try:
        assert run(*arguments) == 2
    except SystemExit as end:  # argparse
        assert end.code == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert [p.name for p in Path().iterdir()] == ["film.mp4"] and Path("film.mp4").read_bytes() == before
