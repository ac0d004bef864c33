"""`osdface` from the outside: results, exit codes, one line per failure, and inputs that stay as they are."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_core import OSDFacePipeline, choices
from osdface_core.cli import batch, report, restore
from osdface_core.cli import main as cli
from osdface_core.cli.batch import one_by_one, overlapped
from osdface_core.cli.main import main
from osdface_core.devices import TORCH_DTYPES
from osdface_core.faces import retinaface
from osdface_core.faces.select import KEYS
from osdface_core.images import Photo, read_photo, write_photo

ROOT = Path(__file__).resolve().parents[1]

Run = Callable[..., int]


@pytest.fixture
def faces(tmp_path: Path, portraits: np.ndarray) -> Path:
    """A small photo of two people."""
    path = tmp_path / "faces.png"
    Image.fromarray(portraits).resize((300, 150)).save(path)
    return path


def blank(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, None if mode == "RGB" else 7).save(path)
    return path


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


# --- one photo


def test_one_photo_to_one_file(run: Run, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = faces.read_bytes()
    assert run(faces, "-o", "out.png") == 0
    out, err = capsys.readouterr()
    assert out.startswith("out.png  2 faces  ")
    assert err == "", "no progress bar where stderr is no terminal"
    result = read_photo("out.png").pixels
    assert result.shape == (150, 300, 3)
    assert not np.array_equal(result, read_photo(faces).pixels)
    assert faces.read_bytes() == before


def test_one_photo_into_a_folder_that_is_made(run: Run, faces: Path) -> None:
    assert run(faces, "-o", "a/b") == 0
    assert tree(Path("a")) == {"b/faces.png"}


def test_everything_else_that_can_be_written(run: Run, faces: Path, tmp_path: Path) -> None:
    assert run(faces, "-o", "o.png", "--crops", "crops", "--compare", "--json", "r/report.json") == 0
    names = {f"o_face{i}_{when}.png" for i in (0, 1) for when in ("before", "after")}
    assert tree(Path("crops")) == names
    assert all(Image.open(Path("crops") / name).size == (512, 512) for name in names)
    assert Image.open("o_compare.png").size == (300, 2 * 150 + report.GAP)
    content = json.loads(Path("r/report.json").read_text(encoding="utf-8"))
    assert content["detector"] == {"name": "mtcnn", "reason": "asked for"}
    assert (content["done"], content["failed"]) == (1, 0)
    photo = content["photos"][0]
    assert (photo["input"], photo["output"], photo["width"], photo["height"]) == (
        str(faces),
        "o.png",
        300,
        150,
    )
    assert len(photo["faces"]) == 2
    assert {"box", "landmarks", "score", "affine", "sharpness"} <= set(photo["faces"][0])


def test_selection_and_sizes(run: Run, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for chosen, count in (
        (["--faces", "largest"], 1),
        (["--faces", "1"], 1),
        (["--faces", "0-1"], 2),
        (["--max-faces", "1", "--order", "score"], 1),
        (["--min-face", "500"], 0),
        (["--max-face", "5"], 0),
    ):
        assert run(faces, "-o", "o.png", *chosen) == 0
        assert f"  {count} face" in capsys.readouterr().out


def test_upscale(run: Run, faces: Path) -> None:
    assert run(faces, "-o", "o.png", "--upscale", "1.5") == 0
    assert Image.open("o.png").size == (450, 225)


def test_another_format_than_the_inputs(run: Run, faces: Path) -> None:
    assert run(faces, "-o", "o.jpg") == 0
    assert Image.open("o.jpg").format == "JPEG"


# --- kinds of files


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_no_face_is_a_copy_and_no_error(
    run: Run, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = blank(tmp_path / f"in{suffix}")
    assert run(source, "-o", "out") == 0
    assert "  0 faces  " in capsys.readouterr().out
    assert (tmp_path / "out" / f"in{suffix}").read_bytes() == source.read_bytes()


def test_sixteen_bits_and_transparency_are_kept(run: Run, portraits: np.ndarray, tmp_path: Path) -> None:
    small = np.asarray(Image.fromarray(portraits).resize((300, 150))).astype(np.uint16) * 257
    small[:, :20] += 13  # values that no 8-bit picture has
    alpha = np.tile(np.linspace(0, 65535, 300).astype(np.uint16), (150, 1))
    write_photo(tmp_path / "deep.png", Photo(small, alpha=alpha))
    assert run("deep.png", "-o", "out.png", "--faces", "largest") == 0
    result = read_photo("out.png")
    assert result.pixels.dtype == np.uint16
    assert result.alpha is not None
    assert np.array_equal(result.alpha, alpha)
    assert np.array_equal(result.pixels[:, :20], small[:, :20])
    assert not np.array_equal(result.pixels, small)
    assert run("deep.png", "-o", "large.png", "--upscale", "2") == 0
    large = read_photo("large.png")
    assert large.alpha is not None
    assert large.alpha.shape == (300, 600)
    assert large.alpha.dtype == np.uint16
    assert (large.alpha[0, 0], large.alpha[0, -1]) == (0, 65535)


def test_grey_stays_a_grey_file(run: Run, faces: Path) -> None:
    Image.open(faces).convert("L").save("grey.png")
    assert run("grey.png", "-o", "out.png") == 0
    assert Image.open("out.png").mode == "L"
    assert not np.array_equal(np.asarray(Image.open("out.png")), np.asarray(Image.open("grey.png")))


def test_turned_by_exif(run: Run, faces: Path) -> None:
    """A camera held sideways: the faces lie on their side in the file and are found upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(faces).rotate(90, expand=True).save("turned.jpg", exif=exif, quality=95)
    assert run("turned.jpg", "-o", "out.jpg", "--json", "r.json") == 0
    assert len(json.loads(Path("r.json").read_text())["photos"][0]["faces"]) == 2
    shown = read_photo("out.jpg").pixels
    assert shown.shape == (150, 300, 3)
    assert (
        np.abs(shown.astype(int) - np.asarray(Image.open(faces).convert("RGB")).astype(int))[:, :20].mean()
        < 4
    )


def test_one_pixel(run: Run, tmp_path: Path) -> None:
    assert run(blank(tmp_path / "1x1.png", (1, 1)), "-o", "out") == 0
    assert Image.open("out/1x1.png").size == (1, 1)


# --- bad inputs: each is named in one line, the others are done


@pytest.mark.usefixtures("runner")
def test_bad_inputs_among_good_ones(
    run: Run, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("cut.jpg").write_bytes(_jpeg(faces)[:2000])
    Path("text.png").write_text("no picture")
    Path("empty.png").touch()
    Path("bare").mkdir()
    bad = ["cut.jpg", "text.png", "empty.png", "nowhere.png", "none*.png", "bare"]
    assert run(*bad, faces, "-o", "out", "--json", "r.json") == 1
    out, err = capsys.readouterr()
    assert lines(out)[0].startswith(str(Path("out/faces.png")))
    assert len(lines(out)) == 1
    for name in bad:
        assert sum(line.startswith(f"{name}: ") for line in lines(err)) == 1, (name, err)
    assert len(lines(err)) == len(bad)
    assert tree(Path("out")) == {"faces.png"}
    content = json.loads(Path("r.json").read_text())
    assert (content["done"], content["failed"]) == (1, len(bad))
    assert {p["input"] for p in content["photos"] if "error" in p} == set(bad)


def _jpeg(source: Path) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.open(source).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.usefixtures("runner")
def test_a_full_disk(
    run: Run, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up while the first photo is written: the old result stays, the second photo is done."""
    blank(tmp_path / "in" / "b.png")
    Image.open(faces).save("in/a.png")
    blank(tmp_path / "out" / "a.png", (9, 9))
    old = Path("out/a.png").read_bytes()
    save = Image.Image.save

    def full(self: Image.Image, target: Any, *rest: Any, **options: Any) -> None:
        target.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    assert run("in", "-o", "out", "--redo") == 1
    monkeypatch.setattr(Image.Image, "save", save)
    out, err = capsys.readouterr()
    assert "No space left on device" in err
    assert len(lines(err)) == 1
    assert lines(out)[0].startswith(str(Path("out/b.png")))
    assert Path("out/a.png").read_bytes() == old
    assert tree(Path("out")) == {"a.png", "b.png"}


@pytest.fixture(params=[one_by_one, overlapped])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through a folder, whatever the device."""
    monkeypatch.setattr(restore, "runner_for", lambda *arguments: request.param)


@pytest.mark.parametrize(
    ("overlaps", "count", "expected"),
    [(False, 2, one_by_one), (True, 2, overlapped), (True, 1, one_by_one)],
)
def test_the_steps_overlap_where_it_pays(overlaps: bool, count: int, expected: Any) -> None:
    pipeline: Any = types.SimpleNamespace(engine=types.SimpleNamespace(overlaps=overlaps))
    jobs: Any = [1, 2]
    assert restore.runner_for(pipeline, jobs[:count]) is expected


@pytest.mark.usefixtures("runner")
@pytest.mark.parametrize("step", ["detect_and_align", "restore_crops", "paste_back"])
def test_errors_that_nobody_planned_for(
    run: Run, faces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise KeyError("a\nb")

    monkeypatch.setattr(batch, step, broken)
    assert run(faces, "-o", "o.png") == 1
    assert lines(capsys.readouterr().err) == [f"{faces}: KeyError: 'a\\nb'"]
    Path("in").mkdir()
    for name in ("a", "b"):
        Image.open(faces).save(f"in/{name}.png")
    assert run("in", "-o", "out") == 1
    assert lines(capsys.readouterr().err) == [f"in/{name}.png: KeyError: 'a\\nb'" for name in ("a", "b")]
    assert not Path("out").exists()


@pytest.mark.usefixtures("runner")
def test_interrupted(
    run: Run, faces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(path: Path, photo: Photo) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "write_photo", interrupted)
    assert run(faces, "-o", "out", "--json", "r.json") == 130
    assert "interrupted" in capsys.readouterr().err
    assert not Path("out").exists()
    assert json.loads(Path("r.json").read_text())["photos"] == []


@pytest.mark.usefixtures("runner")
def test_interrupted_in_a_folder(
    run: Run, faces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the model works on the second photo: the first one is whole, and in the report."""
    Path("in").mkdir()
    for name in "abcd":
        Image.open(faces).save(f"in/{name}.png")
    restore_crops = batch.restore_crops

    def interrupted(*args: Any, **options: Any) -> Any:
        if calls.append(1) or len(calls) == 2:
            raise KeyboardInterrupt
        return restore_crops(*args, **options)

    calls: list[int] = []
    monkeypatch.setattr(batch, "restore_crops", interrupted)
    assert run("in", "-o", "out", "--json", "r.json") == 130
    assert tree(Path("out")) == {"a.png"}
    assert [p["input"] for p in json.loads(Path("r.json").read_text())["photos"]] == ["in/a.png"]
    assert lines(capsys.readouterr().err)[-1].endswith("no half-written file is left")


@pytest.mark.usefixtures("runner")
def test_a_folder_gives_what_each_photo_gives_alone(run: Run, faces: Path) -> None:
    Path("in").mkdir()
    for number in range(5):
        Image.open(faces).crop((number, 0, 300, 150)).save(f"in/{number}.png")
    assert run("in", "-o", "out", "--compare", "--json", "r.json") == 0
    photos = json.loads(Path("r.json").read_text())["photos"]
    assert [p["input"] for p in photos] == [f"in/{n}.png" for n in range(5)]
    assert all(p["seconds"] == pytest.approx(sum(p["stages"].values()), abs=2e-3) for p in photos)
    for number in range(5):
        assert run(f"in/{number}.png", "-o", "alone.png", "--compare") == 0
        for there, here in ((f"{number}.png", "alone.png"), (f"{number}_compare.png", "alone_compare.png")):
            assert np.array_equal(read_photo(f"out/{there}").pixels, read_photo(here).pixels), there


# --- folders, globs, and inputs that are never overwritten


def folder_of_photos(root: Path) -> Path:
    for name in ("a.png", "b.jpg", "sub/a.png", "sub/deeper/c.webp", ".hidden.png", ".git/x.png"):
        blank(root / name)
    (root / "notes.txt").write_text("no photo")
    return root


def test_a_folder_keeps_its_structure(run: Run, tmp_path: Path) -> None:
    folder_of_photos(tmp_path / "in")
    expected = {"a.png", "b.jpg", "sub/a.png", "sub/deeper/c.webp"}
    assert run("in", "-o", "out") == 0
    assert tree(Path("out")) == expected
    # Results inside the searched folder are not taken for photos by the next run.
    for _ in range(2):
        assert run("in", "-o", "in/out") == 0
        assert tree(Path("in/out")) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.png", {"a.png"}),
        ("in/**/*.png", {"a.png", "sub/a.png"}),
        ("in/*/*", {"sub/a.png"}),
        ("in/sub/[a-c].png", {"a.png"}),
        ("*/sub/**", {"in/sub/a.png", "in/sub/deeper/c.webp"}),
    ],
)
def test_globs_keep_what_is_below_their_fixed_part(
    run: Run, tmp_path: Path, pattern: str, expected: set[str]
) -> None:
    folder_of_photos(tmp_path / "in")
    assert run(pattern, "-o", "out") == 0
    assert tree(Path("out")) == expected


def test_brackets_in_a_name_are_no_glob(run: Run, tmp_path: Path) -> None:
    blank(tmp_path / "photo[1].png")
    assert run("photo[1].png", "-o", "out") == 0
    assert tree(Path("out")) == {"photo[1].png"}


def test_the_same_photo_twice_is_one_photo(run: Run, tmp_path: Path) -> None:
    blank(tmp_path / "a.png")
    assert run("a.png", "*.png", "a.png", "-o", "out") == 0
    assert tree(Path("out")) == {"a.png"}


def test_names_of_crops_do_not_collide(run: Run, faces: Path) -> None:
    Path("in").mkdir()
    Image.open(faces).save("in/a.png")
    Image.open(faces).save("in/a.bmp")
    assert run("in", "-o", "out", "--crops", "crops", "--faces", "largest") == 0
    assert {"a.png_face0_after.png", "a.bmp_face0_after.png"} <= tree(Path("crops"))


def refused(run: Run, capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    assert run(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(lines(err)) == 1
    return err


def test_an_input_is_never_overwritten(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = blank(tmp_path / "in" / "a.png")
    before = source.read_bytes()
    Path("link.png").symlink_to(source)
    Path("linked").symlink_to(tmp_path / "in", target_is_directory=True)
    os.link(source, "hard.png")
    for args in (
        ["in/a.png", "-o", "in/a.png"],
        ["in/a.png", "-o", "in"],
        ["in/a.png", "-o", "in/../in/a.png"],
        ["in/a.png", "-o", "link.png"],
        ["in/a.png", "-o", "linked"],
        ["in/a.png", "-o", "hard.png"],
        ["link.png", "-o", "in/a.png"],
        ["in", "-o", "in"],
        ["in", "-o", "linked"],
        ["in/*.png", "-o", "in"],
    ):
        assert "never overwritten" in refused(run, capsys, *args), args
        assert source.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hard.png", "in", "link.png", "linked"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["a.png"]


def test_nor_by_the_other_results(
    run: Run, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank(tmp_path / "in" / "a.png")
    blank(tmp_path / "in" / "a_compare.png")
    blank(tmp_path / "b_compare.png")
    assert "a_compare.png is taken by a photo" in refused(run, capsys, "in", "-o", "out", "--compare")
    assert "is taken by a photo" in refused(run, capsys, "b_compare.png", "-o", "b.png", "--compare")
    assert "has the name of a photo" in refused(run, capsys, faces, "-o", "x.png", "--json", faces)
    assert "has the name of a photo" in refused(run, capsys, faces, "-o", "x.png", "--json", "x.png")


def test_crops_do_not_replace_inputs(run: Run, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("crops").mkdir()
    target = Path("crops/faces_face0_before.png")
    Image.open(faces).save(target)
    before = target.read_bytes()
    assert run(faces, target, "-o", "out", "--crops", "crops", "--faces", "largest") == 1
    assert "is an input and is not overwritten" in capsys.readouterr().err
    assert target.read_bytes() == before


# --- wrong usage


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a.png", "b.png", "-o", "out.png"], "out.png is a file name, but there are several inputs"),
        (["in", "-o", "out.png"], "out.png is a file name"),
        (["a.png", "-o", "notes.txt"], "notes.txt is a file of another kind"),
        (["in/a.png", "a.png", "-o", "out"], "would both be written to"),
        (["a.png", "-o", "o.png", "--aligned", "--upscale", "2"], "leave --upscale out"),
        (["a.png", "-o", "o.png", "--aligned", "--upscale-model", "x.pth"], "leave --upscale-model out"),
    ],
)
def test_paths_that_do_not_fit(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    for name in ("a.png", "b.png", "in/a.png"):
        blank(tmp_path / name)
    Path("notes.txt").touch()
    assert message in refused(run, capsys, *args)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["a.png"],
        ["a.png", "-o"],
        ["a.png", "-o", "o.png", "--strength", "1.5"],
        ["a.png", "-o", "o.png", "--strength", "nan"],
        ["a.png", "-o", "o.png", "--strength", "much"],
        ["a.png", "-o", "o.png", "--upscale", "0.5"],
        ["a.png", "-o", "o.png", "--feather", "0"],
        ["a.png", "-o", "o.png", "--timestep", "1000"],
        ["a.png", "-o", "o.png", "--faces", "two"],
        ["a.png", "-o", "o.png", "--max-faces", "0"],
        ["a.png", "-o", "o.png", "--min-face", "-1"],
        ["a.png", "-o", "o.png", "--color-fix", "sepia"],
        ["a.png", "-o", "o.png", "--dtype", "fp8"],
        ["a.png", "-o", "o.png", "--nonsense"],
    ],
)
def test_wrong_arguments(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["restore", *args])
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("none.safetensors", "no checkpoint at"),
        ("cut.safetensors", "truncated"),
        (".", "lacks associate_2.ckpt"),
    ],
)
def test_wrong_models(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    blank(tmp_path / "a.png")
    Path("cut.safetensors").write_bytes(tiny_checkpoint.read_bytes()[:-100])
    assert main(["restore", "a.png", "-o", "o.png", "--model", model, "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(lines(err)) == 1
    assert not Path("o.png").exists()


@pytest.mark.parametrize("aligned", [[], ["--aligned"]])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base", "nope"], "no file or folder at --base nope"),
        (["--codec-dir", "nope"], "no file or folder at --codec-dir nope"),
        (["--detector-dir", "nope"], "no file or folder at --detector-dir nope"),
        (["--min-face", "500", "--max-face", "20"], "--min-face is 500.0, expected at most --max-face, 20"),
        (["--identity", "nope"], "--identity nope: face identity (MobileFaceNet) weights not found at nope"),
        (["--identity", "a.png"], "--identity a.png: face identity weights at a.png: the file is a picture"),
        (["--crops", "notes.txt"], "--crops notes.txt: notes.txt is a file; give a folder"),
        (["--crops", "notes.txt/x"], "notes.txt is a file; give a folder"),
        (["--json", "in"], "--json in is a folder; give a file name"),
    ],
)
def test_wrong_values_are_found_before_the_model_loads(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], aligned: list[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(restore, "load", lambda args: pytest.fail("the model was loaded"))
    blank(Path("a.png"))
    Path("in").mkdir()
    Path("notes.txt").touch()
    assert message in refused(run, capsys, "a.png", "-o", "o.png", *options, *aligned)
    assert not Path("o.png").exists()


def test_a_dial_that_the_model_lacks(
    run: Run, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank(Path("a.png"))
    said = refused(run, capsys, "a.png", "-o", "o.png", "--model", str(tiny_checkpoint), "--fidelity", "0.5")
    assert "--fidelity is 0.5, expected 1: this model has no such dial" in said


def test_a_missing_upscaling_model(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    blank(Path("a.png"))
    said = refused(run, capsys, "a.png", "-o", "o.png", "--upscale", "2", "--upscale-model", "nope.pth")
    assert "no file or folder at --upscale-model nope.pth" in said


def test_a_folder_for_fetched_weights_need_not_exist(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_restore_all", lambda *args: None)
    blank(Path("a.png"))
    options = ["--detector", "retinaface_resnet50", "--detector-dir", "new/folder"]
    assert main(["restore", "a.png", "-o", "o.png", *options]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--base", "in"], ["--base not used: the model is self-contained"]),
        (
            ["--lora-scale", "0.5", "--lora", "live"],
            ["--lora-scale --lora not used: the model is self-contained"],
        ),
        (["--codec-dir", "in"], ["--codec-dir not used: --codec is own"]),
        (["--detector-dir", "in"], ["--detector-dir not used: MTCNN comes with this program"]),
        (["--upscale-model", "a.png"], ["--upscale-model not used: --upscale is 1"]),
        (
            ["--aligned", "--faces", "99", "--threshold", "0.5", "--feather", "0.3"],
            [
                "--detector --threshold --faces not used: --aligned looks for no faces",
                "--feather not used: --aligned pastes nothing",
            ],
        ),
    ],
)
def test_options_that_do_nothing_are_named(
    run: Run, capsys: pytest.CaptureFixture[str], options: list[str], said: list[str]
) -> None:
    blank(Path("a.png"))
    Path("in").mkdir()
    assert run("a.png", "-o", "o.png", *options) == 0
    assert lines(capsys.readouterr().err) == said
    assert Path("o.png").exists()


def test_the_base_that_tags_read_is_not_called_unused(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what `--tags` lacks is said before the model loads."""
    monkeypatch.setattr("osdface_core.cli.restore.load", lambda args: pytest.fail("the model loads"))
    blank(Path("a.png"))
    Path("in").mkdir()
    for name in ("--tags", "--tokens"):
        said = refused(run, capsys, "a.png", "-o", "o.png", "--attention-maps", "maps", name, "")
        assert said.startswith(f"osdface restore: {name} ")
    said = refused(run, capsys, "a.png", "-o", "o.png", "--base", "in", "--tags", "man")
    assert said == "osdface restore: --tags: this model has no text prompt; leave it out\n"


def test_a_face_that_is_not_there(run: Run, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(faces, "-o", "copy.png", "--faces", "99") == 0
    assert "`faces` 99: 0 of 1 found; numbers count from 0" in capsys.readouterr().err
    assert Path("copy.png").read_bytes() == faces.read_bytes()
    assert run(faces, "-o", "o.png", "--faces", "5,1") == 0
    done = capsys.readouterr()
    assert "o.png  1 face " in done.out and "`faces` 5,1: 1 of 2 found; numbers count from 0" in done.err
    assert run(faces, "-o", "one.png", "--faces", "0-9", "--max-faces", "1") == 0
    assert not capsys.readouterr().err


def test_the_model_is_loaded_as_asked(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blank(tmp_path / "a.png", (64, 64))
    seen: list[OSDFacePipeline] = []
    load = restore.load
    monkeypatch.setattr(restore, "load", lambda args: seen.append(load(args)) or seen[-1])
    options = ["--model", str(tiny_checkpoint), "--device", "cpu", "--dtype", "bf16", "--engine", "eager"]
    assert main(["restore", "a.png", "-o", "o.png", "--aligned", *options]) == 0
    assert (seen[0].device.type, seen[0].dtype) == ("cpu", torch.bfloat16)
    assert Image.open("o.png").size == (512, 512)


# --- aligned faces


def test_aligned_squares_are_resized_to_512(
    run: Run, portraits: np.ndarray, tiny_pipeline: OSDFacePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    crop = Image.fromarray(portraits[:, 300:]).resize((200, 200))
    crop.save("face.png")
    assert run("face.png", "-o", "out.png", "--aligned", "--compare") == 0
    assert "  1 face  " in capsys.readouterr().out
    face = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 255
    face = torch.nn.functional.interpolate(face, (512, 512), mode="bilinear", align_corners=True)
    expected = (tiny_pipeline.restore(face)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.array_equal(read_photo("out.png").pixels, expected)
    assert Image.open("out_compare.png").size == (2 * 512 + report.GAP, 512)


def test_aligned_faces_of_other_shapes_keep_their_size(run: Run, portraits: np.ndarray) -> None:
    Image.fromarray(portraits[:, 300:500]).resize((150, 203)).save("face.png")
    Image.new("RGBA", (150, 203), (9, 9, 9, 99)).save("alpha.png")
    assert run("face.png", "alpha.png", "-o", "out", "--aligned", "--strength", "0.5") == 0
    assert Image.open("out/face.png").size == (144, 200)
    assert Image.open("out/alpha.png").mode == "RGBA"
    assert Image.open("out/alpha.png").size == (144, 200)


def test_aligned_grey_stays_grey(run: Run, portraits: np.ndarray) -> None:
    Image.fromarray(portraits[:, 300:]).convert("L").save("grey.png")
    assert run("grey.png", "-o", "out.png", "--aligned") == 0
    assert Image.open("out.png").mode == "L"


def test_aligned_faces_too_small_to_restore(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank(tmp_path / "line.png", (40, 3))
    assert run("line.png", "-o", "out.png", "--aligned") == 1
    assert "expected at least 8x8" in capsys.readouterr().err


# --- the other commands


def test_info(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_checkpoint)]) == 0
    text = capsys.readouterr().out
    assert "tiny: self-contained" in text
    assert "complete  yes" in text
    assert main(["info", str(tiny_checkpoint), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["complete"] is True
    assert facts["problems"] == []
    assert facts["config"]["timestep"] == 399
    assert facts["training"] == {"recipe": "random", "steps": 0}
    assert set(facts["parts"]) == {"vre", "projection", "unet", "codec"}


def test_info_about_incomplete_files(
    tiny_config: Any,
    tiny_tensors: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from osdface_core.checkpoint import save_checkpoint

    path, name = tmp_path / "x.safetensors", "unet.conv_in.weight"
    cases = {
        "no projection; no unet; no codec": {k: v for k, v in tiny_tensors.items() if k.startswith("vre.")},
        f"unet: 1 tensors missing, first {name}": {k: v for k, v in tiny_tensors.items() if k != name},
        f"unet: {name} is (1,), expected (16, 4, 3, 3)": tiny_tensors | {name: torch.ones(1)},
        "vre: 1 unexpected tensors, first vre.more": tiny_tensors | {"vre.more": torch.ones(1)},
    }
    for message, tensors in cases.items():
        save_checkpoint(path, tensors, tiny_config)
        assert main(["info", str(path)]) == 0
        assert f"complete  no: {message}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["none.safetensors", "junk.safetensors", "."])
def test_info_about_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert main(["info", str(tmp_path / name)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(lines(err)) == 1


def released(folder: Path) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    torch.save({"state_dict": {"vqvae_LQ.encoder.x": torch.ones(2)}}, folder / "associate_2.ckpt")
    torch.save({"conv1.weight": torch.ones(2)}, folder / "embedding_change_weights.pth")
    lora = {"unet.a.lora_A.weight": torch.ones(1, 2), "unet.a.lora_B.weight": torch.ones(2, 1)}
    save_file(lora, folder / "pytorch_lora_weights.safetensors")
    return folder


def test_convert_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = released(tmp_path / "released")
    one = tmp_path / "one.safetensors"
    assert main(["convert", str(source), str(one)]) == 0
    assert capsys.readouterr().out == f"{one}\n"
    assert main(["convert", str(one), str(tmp_path / "back"), "--to-released"]) == 0
    assert tree(tmp_path / "back") == tree(source)


def test_convert_refuses_paths_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = released(tmp_path / "released")
    lora = source / "pytorch_lora_weights.safetensors"
    before = lora.read_bytes()
    for args in (
        [source, tmp_path / "x.ckpt"],
        [source, lora],
        [lora, tmp_path / "x.safetensors"],
        [source, tmp_path / "x", "--to-released"],
        [lora, source, "--to-released"],
        [lora, lora, "--to-released"],
    ):
        assert main(["convert", *map(str, args)]) == 2, args
        assert len(lines(capsys.readouterr().err)) == 1
        assert lora.read_bytes() == before


def test_training_commands_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    trainer = types.ModuleType("osdface_trainer.cli")
    trainer.main = lambda argv: seen.append(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "osdface_trainer.cli", trainer)
    assert main(["train", "vre", "r.toml", "--set", "a.b=c"]) == 7
    assert main(["evaluate", "-h"]) == 7
    assert seen == [["train", "vre", "r.toml", "--set", "a.b=c"], ["evaluate", "-h"]]


def test_training_commands_without_their_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str, package: str | None = None) -> Any:
        raise ModuleNotFoundError("No module named 'accelerate'", name="accelerate")

    monkeypatch.setattr(cli.importlib, "import_module", absent)
    assert main(["train", "vre", "r.toml"]) == 1
    assert (
        'accelerate is not installed, which training needs: pip install "osdface[train]"'
        in capsys.readouterr().err
    )


def test_every_trainer_command_is_listed() -> None:
    trainer = pytest.importorskip("osdface_trainer.cli")
    assert set(cli.TRAINER_COMMANDS) == {name.split()[0] for name in trainer.COMMANDS}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {name} " in text for name in (*cli.COMMANDS, *cli.TRAINER_COMMANDS))


@pytest.mark.parametrize("argv", [[], ["restoer"], ["--wat"]])
def test_unknown_commands(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2


def test_as_a_module() -> None:
    root = Path(cli.__file__).parents[1]
    for arguments, code in ((["--version"], 0), (["info", "nowhere.safetensors"], 1), (["restore"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "osdface_core", *arguments], cwd=root, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_the_readme_line_works_with_the_embedded_checkpoint(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["restore", str(faces), "-o", "out.png"]) == 0
    assert Image.open("out.png").size == (300, 150)


# --- the detector is named


def test_what_auto_chose_is_said_once_and_reported(
    run: Run, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OSDFACE_HOME", str(tmp_path / "home"))
    arguments = ["restore", str(faces), str(blank(tmp_path / "no.png")), "-o", "out", "--json", "r.json"]
    assert main(arguments) == 0
    report = json.loads(Path("r.json").read_text())["detector"]
    assert report["name"] == "mtcnn" and str(tmp_path / "home") in report["reason"]
    assert lines(capsys.readouterr().err) == [f"face detector: mtcnn ({report['reason']})"]
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_aligned_faces_need_no_detector(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "face.png")
    assert run("--aligned", "face.png", "-o", "o.png", "--json", "r.json") == 0
    assert json.loads(Path("r.json").read_text())["detector"] is None


def loaded_after(code: str) -> set[str]:
    """Modules of a fresh process that has run `code`."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    call = [sys.executable, "-c", script]
    return set(subprocess.run(call, check=True, cwd=ROOT, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("command", [[], ["restore"]])
def test_help_needs_no_pytorch(command: list[str]) -> None:
    """It answers in a tenth of a second: the choices stand in `choices.py`, apart from what they choose."""
    parse = (
        f"from osdface_core.cli.main import main\ntry: main({[*command, '--help']})\nexcept SystemExit: pass"
    )
    loaded = loaded_after(parse)
    assert "argparse" in loaded and not loaded & {"torch", "numpy", "PIL"}


def test_torchvision_waits_for_the_first_detection() -> None:
    """Its operators alone take a second to import."""
    assert "torchvision" not in loaded_after("import osdface_core.pipeline, osdface_core.cli.batch")


def test_choices_are_those_of_the_functions() -> None:
    assert ("auto", *retinaface.RELEASES, "mtcnn") == get_args(choices.DetectorName)
    assert {"auto", *TORCH_DTYPES} == set(get_args(choices.Dtype))
    assert set(get_args(choices.Order)) == set(KEYS)


# --- telling, and names


def test_wrong_values_name_the_option_and_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value, expected in [
        ("--strength", "1.5", "0..1"),
        ("--timestep", "1000", "0..999"),
        ("--faces", "two", "all, largest, center or numbers such as 0,2 or 1-3"),
        ("--color-fix", "sepia", "one of none, adain, wavelet, luma"),
        ("--paste", "glue", "one of residual, replace"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(["restore", "a.png", "-o", "o.png", flag, value])
        assert stopped.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        name = {"--paste": "--paste-mode/--paste"}.get(flag, flag)
        assert error.endswith(f"argument {name}: got {value!r}, expected {expected}")


def test_order_by_area_is_order_by_size(run: Run, faces: Path) -> None:
    for order in ("size", "area"):
        assert run(faces, "-o", f"{order}.png", "--order", order, "--max-faces", "1") == 0
    assert Path("size.png").read_bytes() == Path("area.png").read_bytes()


NAMES = ["日本語.png", "→….png", "café.png".encode("latin-1").decode("utf-8", "surrogateescape"), "z.png"]
NAMES += ["two\nlines\x1b[2J.png"]


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_console_that_lacks_characters(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    for name in NAMES:
        blank(tmp_path / "in" / name)
    (tmp_path / "in" / "→broken.png").write_bytes(b"no picture")
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert run("in", "-o", "out", "--json", "r.json") == 1
    assert {path.name for path in Path("out").iterdir()} == set(NAMES)
    report = json.loads(Path("r.json").read_text())
    assert (report["done"], report["failed"]) == (len(NAMES), 1)
    said = streams[0].buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert len(said.splitlines()) == len(NAMES)
    assert r"\u65e5\u672c\u8a9e.png" in said and r"\udce9.png" in said
    assert r"two\nlines\x1b[2J.png" in said


def test_a_reader_that_went_away(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        blank(tmp_path / "in" / f"{name}.png")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run("in", "-o", "out", "--json", "r.json") == 0
    assert json.loads(Path("r.json").read_text())["done"] == len(tree(Path("out"))) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
def test_pipes_and_devices_do_not_stop_a_folder(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank(tmp_path / "in" / "z.png")
    os.mkfifo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").symlink_to("/dev/zero")
    assert run("in", "-o", "out") == 1
    assert tree(Path("out")) == {"z.png"}
    assert [line.partition(" is ")[2] for line in lines(capsys.readouterr().err)] == [
        "a pipe or a device: save it as a file first"
    ] * 2


@pytest.mark.parametrize("stem", ["x" * 251, "😀" * 60, "é" * 125])
def test_long_names(run: Run, tmp_path: Path, stem: str) -> None:
    """Disks count bytes, 255 a name."""
    blank(tmp_path / "in" / f"{stem}.png")
    blank(tmp_path / "in" / "z.png")
    assert run("in", "-o", "out") == 0
    assert tree(Path("out")) == {f"{stem}.png", "z.png"}


def test_a_name_that_no_disk_holds(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blank(tmp_path / "a.png")
    assert run("x" * 300, "a.png", "-o", "out") == 1
    assert tree(Path("out")) == {"a.png"}
    assert "x: no such file or folder" in capsys.readouterr().err
