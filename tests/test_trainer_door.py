"""What training looks at before it builds anything: pictures, weights, and what a resumed run may change."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from osdface_core.errors import CheckpointError, ConfigError
from osdface_trainer.cli import main
from osdface_trainer.data import check
from osdface_trainer.data.check import CheckedFiles, check_face, find_broken
from osdface_trainer.data.faces import FaceFile
from osdface_trainer.data.sources import list_faces
from osdface_trainer.loop import train
from osdface_trainer.recipe.config import Recipe, load_recipe
from osdface_trainer.restorer.init import build_initial
from osdface_trainer.weight_files import check_readable, check_weights, require_weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Six small noisy pictures in several formats."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for number, suffix in enumerate(("png", "jpg", "webp", "bmp", "tif", "png")):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
    return folder


def truncate(path: Path, share: float = 0.7) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def smoke(faces: Path, folder: Path, *overrides: str) -> Recipe:
    places = (f"data.train={faces}", f"run.dir={folder}", "run.report=false", "run.sample_every=0")
    return load_recipe("smoke", [*places, *overrides])


def test_whole_pictures_pass_and_truncated_ones_do_not(faces: Path) -> None:
    files = list_faces(faces)
    assert [check_face(file) for file in files] == [""] * 6
    for file in files:
        truncate(file.path)
        assert check_face(file).startswith(f"{file.name}: no readable image")


def test_missing_oblong_and_foreign_files_do_not_pass(faces: Path) -> None:
    Image.new("RGB", (64, 32)).save(faces / "wide.png")
    (faces / "text.png").write_text("no picture")
    assert "wide.png is 64x32, expected a square" in check_face(FaceFile("wide.png", faces / "wide.png"))
    assert "no readable image" in check_face(FaceFile("text.png", faces / "text.png"))
    assert "cannot be read" in check_face(FaceFile("gone.png", faces / "gone.png"))


def test_a_wrong_checksum_in_a_comment_leaves_a_picture_usable(faces: Path) -> None:
    data = (faces / "0.png").read_bytes()
    body = b"tEXt" + b"note\0words"
    comment = (len(body) - 4).to_bytes(4, "big") + body + (zlib.crc32(body) ^ 1).to_bytes(4, "big")
    (faces / "0.png").write_bytes(data[:-12] + comment + data[-12:])  # before IEND
    assert check_face(FaceFile("0.png", faces / "0.png")) == ""


def test_outcomes_are_kept_until_a_file_changes(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate(faces / "1.jpg")
    files, kept = list_faces(faces), tmp_path / "checked.npy"
    first = find_broken(files, CheckedFiles(kept), workers=2)
    assert [files[at].name for at in first] == ["1.jpg"]
    looked: list[str] = []
    monkeypatch.setattr(check, "check_face", lambda file: looked.append(file.name) or "")
    assert find_broken(files, CheckedFiles(kept), workers=2) == {}
    assert looked == ["1.jpg"], "what was sound is not looked at again"
    stat = (faces / "3.bmp").stat()
    os.utime(faces / "3.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    find_broken(files, CheckedFiles(kept), workers=2)
    assert looked == ["1.jpg", "3.bmp"]
    kept.write_text("[1, 2")  # a damaged note is only lost
    assert find_broken(files, CheckedFiles(kept), workers=2) == {} and len(looked) == 8


def test_a_truncated_picture_stops_the_run_before_it_builds_anything(faces: Path, tmp_path: Path) -> None:
    truncate(faces / "0.png")
    message = r"data\.train: 1 of 6 pictures cannot be used: 0\.png: .*skip"
    with pytest.raises(ConfigError, match=message) as error:
        train(smoke(faces, tmp_path / "run"), "vre", quiet=True)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run" / "vre" / "checkpoints").glob("*"))


def test_a_truncated_picture_is_skipped_and_counted(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(faces / "0.png")
    recipe = smoke(faces, tmp_path / "run", "data.broken=skip", f"data.val={faces}", "run.validate_every=6")
    assert train(recipe, "vre", quiet=True).step == 6
    printed = capsys.readouterr().err
    assert "data.train: 1 of 6 pictures cannot be used: 0.png" in printed and "; skipped" in printed
    for file in faces.iterdir():
        truncate(file, 0.5)
    with pytest.raises(ConfigError, match="6 of 6 pictures cannot be used"):
        train(smoke(faces, tmp_path / "none", "data.broken=skip"), "vre", quiet=True)


def test_all_missing_weights_are_named_at_once(faces: Path, tmp_path: Path) -> None:
    pointer = tmp_path / "squeeze.pth"
    pointer.write_bytes(POINTER)
    recipe = smoke(
        faces, tmp_path / "run", f"restorer.codec_init={tmp_path}", "restorer.perceptual.weight=1",
        f"restorer.perceptual.file={pointer}", "restorer.identity.weight=1",
        f"restorer.identity.file={tmp_path}", "restorer.ea_dists.weight=0", "restorer.vre=gone.safetensors",
    )  # fmt: skip
    with pytest.raises(CheckpointError) as error:
        train(recipe, "restorer", quiet=True)
    lines = str(error.value).splitlines()[1:]
    keys = ("restorer.vre", "restorer.codec_init", "restorer.perceptual.file", "restorer.identity.file")
    assert [line.split(":")[0].strip() for line in lines] == list(keys)
    assert "no checkpoint at gone.safetensors" in lines[0]
    assert "taesd_encoder.safetensors" in lines[1] and "madebyollin/taesd" in lines[1]
    assert f"{pointer} is a Git LFS pointer" in lines[2]
    assert "mobilefacenet.pt" in lines[3]
    assert not (tmp_path / "run").exists()


def test_keys_that_must_be_set_are_a_matter_of_the_recipe(faces: Path, tmp_path: Path) -> None:
    message = r"restorer\.vre: no VRE: .*osdface train vre(.|\n)*restorer\.base is empty"
    with pytest.raises(ConfigError, match=message):
        require_weights(smoke(faces, tmp_path, 'restorer.mode="lora"'), "restorer")


def test_which_weights_a_recipe_needs(tmp_path: Path) -> None:
    def keys(*overrides: str) -> list[str]:
        return [one.key for one in check_weights(load_recipe("paper", overrides), "restorer")]

    usual = ["restorer.vre", "restorer.base", "restorer.ea_dists.file", "restorer.identity.file"]
    assert keys(f"run.dir={tmp_path}") == usual
    assert keys("restorer.init=mini")[:2] == ["restorer.init", "restorer.base"]
    assert keys('restorer.prompt="none"', "restorer.ea_dists.weight=0") == ["restorer.base", usual[-1]]
    assert "restorer.perceptual.file" in keys("data.val=faces")
    assert [one.key for one in check_weights(load_recipe("mini"), "vre")] == ["vre.perceptual.file"]


def test_truncated_weights_are_found_without_reading_them(tmp_path: Path) -> None:
    whole, legacy = tmp_path / "a.safetensors", tmp_path / "old.pth"
    save_file({"x": torch.zeros(100)}, whole)
    torch.save({"x": torch.zeros(100)}, tmp_path / "b.pth")
    torch.save({"x": torch.zeros(100)}, legacy, _use_new_zipfile_serialization=False)
    for path in (whole, tmp_path / "b.pth", legacy):
        check_readable(path)
    for path in (whole, tmp_path / "b.pth"):
        truncate(path)
        with pytest.raises(CheckpointError, match=f"{path.name} is truncated"):
            check_readable(path)


def test_init_takes_the_names_of_the_pipeline(tmp_path: Path) -> None:
    recipe = load_recipe("mini", ["restorer.init=mini", f"run.dir={tmp_path}"])
    needed = {one.key: one for one in check_weights(recipe, "restorer")}
    assert needed["restorer.init"].problem is None
    assert needed["restorer.init"].files[0].name == "mini.safetensors"
    assert "restorer.codec_init" not in needed and "restorer.vre" not in needed
    initial = build_initial(recipe)
    assert initial.parent == "mini" and initial.generator.config.name == "mini"


def test_a_resumed_run_takes_harmless_changes_and_says_so(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(smoke(faces, tmp_path / "run"), "vre", quiet=True)
    capsys.readouterr()
    more = ("vre.assoc.steps=3", "vre.accumulate=2", "run.validate_every=5", "run.channels_last=false")
    outcome = train(smoke(faces, tmp_path / "run", *more), "vre", quiet=True)
    assert (outcome.step, outcome.total) == (7, 7)
    printed = capsys.readouterr().err
    assert "continuing with changes to the recipe: " in printed
    for change in ("vre.assoc.steps 2 -> 3", "vre.accumulate 1 -> 2", "run.validate_every 2 -> 5"):
        assert change in printed
    with pytest.raises(ConfigError, match=r"these keys differ: vre\.hq\.steps\."):  # that phase is over
        train(smoke(faces, tmp_path / "run", *more, "vre.hq.steps=4"), "vre", quiet=True)
    with pytest.raises(ConfigError, match=r"these keys differ: vre\.assoc\.steps\."):  # seven steps are done
        train(smoke(faces, tmp_path / "run", *more, "vre.assoc.steps=1"), "vre", quiet=True)


def dry(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["train", *map(str, words), "--dry-run", "--quiet"])
    return code, capsys.readouterr().out


def test_a_dry_run_tells_what_would_happen(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ("vre", "smoke", "--set", f"run.dir={run}", "--set", f"data.train={faces}")
    code, out = dry(capsys, *words)
    assert code == 0 and f"data.train: 6 faces from {faces}" in out and "would start at step 0 of 6" in out
    assert not run.exists()
    train(smoke(faces, run, "vre.assoc.steps=0"), "vre", quiet=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, out = dry(capsys, *words)
    assert code == 0
    assert "would continue at step 4 of 6, with changes to the recipe: vre.assoc.steps 0 -> 2" in out
    code, out = dry(capsys, *words, "--set", "vre.lr=1")
    assert code == 2 and "REFUSED" in out and "these keys differ: vre.lr." in out
    code, out = dry(capsys, *words, "--fresh")
    assert code == 0 and "would start over at step 0 of 6 (the former run is kept beside it)" in out
    truncate(faces / "1.jpg")
    code, out = dry(capsys, *words)
    assert code == 2 and "data.train: UNUSABLE: data.train: 1 of 6 pictures cannot be used: 1.jpg" in out
    code, out = dry(capsys, *words, "--set", "data.broken=skip")
    assert code == 0 and "data.train: 5 faces" in out and "skipped" in out
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_dry_run_checks_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = dry(capsys, "restorer", "smoke", "--set", f"run.dir={tmp_path}")
    assert code == 0 and "data.train: MISSING: not set" in out  # a recipe that leaves its places open
    assert "restorer.vre: MISSING: no VRE" in out
    code, out = dry(capsys, "restorer", "smoke", "--set", f"run.dir={tmp_path}", "--set", "restorer.vre=gone")
    assert code == 2 and "restorer.vre: MISSING: no checkpoint at gone" in out
    words = ("restorer", "smoke", "--set", f"run.dir={tmp_path}")
    (tmp_path / "pointer.safetensors").write_bytes(POINTER)
    code, out = dry(capsys, *words, "--set", f"restorer.init={tmp_path}/pointer.safetensors")
    assert code == 2 and "parameters are unknown: pointer.safetensors is a Git LFS pointer" in out
    assert "restorer.init: MISSING: pointer.safetensors is a Git LFS pointer" in out
    code, out = dry(capsys, *words, "--set", "restorer.init=mini")
    assert code == 0 and "assets/mini.safetensors" in out


def test_an_unknown_recipe_lists_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "vre", "papper"]) == 2
    message = capsys.readouterr().err
    assert "recipe papper does not exist" in message and "finetune, " in message and "paper, " in message
