"""The embedded model's targets: which numbers pass, paired tests on made-up scores, and one whole run."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from osdface_trainer.evaluation.scores import Report, Row
from osdface_trainer.metrics.base import Column
from tests.tools import load_tool

targets = load_tool("mini_targets")
COLUMNS = (
    Column("perceptual", "lower", ""), Column("identity_cos", "higher", ""), Column("psnr", "higher", ""),
    Column("hf_energy", "one", ""),
)  # fmt: skip


def row(name: str, level: str, skin: str, **restored: float) -> Row:
    before = {"perceptual": 0.5, "identity_cos": 0.5, "psnr": 22.0, "hf_energy": 0.2}
    after = {"perceptual": 0.3, "identity_cos": 0.6, "psnr": 22.5, "hf_energy": 0.7}
    return Row(name, level, {**after, **restored}, before, {"skin": skin})


def test_each_level_and_group_has_its_limits() -> None:
    rows = [row(f"{n}", level, "light") for level in targets.LEVELS for n in range(2)]
    rows += [row("d", "mild", "dark", identity_cos=0.495), row("d", "medium", "dark", identity_cos=0.495)]
    rows += [row("p", "severe", "light", perceptual=0.6, psnr=20.0, hf_energy=3.2)]
    report = Report(COLUMNS, rows=rows, settings={"seed": 0})
    found = {one.what: one for one in targets.picture_targets(report)}
    assert found["perceptual ratio, mild"].verdict == "aim"  # 0.6
    assert found["perceptual ratio, medium"].verdict == "must"  # of 0.64 and 0.55
    assert found["perceptual ratio, severe"].value == pytest.approx(0.8)
    assert found["perceptual ratio, severe"].verdict == "FAIL"
    assert found["PSNR gain [dB], mild"].verdict == "aim"
    assert found["PSNR gain [dB], severe"].value == pytest.approx(-1 / 3)
    assert found["PSNR gain [dB], severe"].verdict == "FAIL"
    assert found["identity gain, mild, skin dark (n = 1)"].verdict == "must"  # -0.005, of -0.01
    assert found["identity gain, medium, skin dark (n = 1)"].verdict == "FAIL"  # -0.005, of 0
    assert found["identity gain, medium"].verdict == "must"
    assert found["detail, mild, least"].verdict == "must" and found["detail, mild, most"].verdict == "aim"
    assert found["detail, severe, most"].verdict == "FAIL"  # 1.53 on average


def test_what_is_not_measured_is_not_reached() -> None:
    rows = [row("a", level, "light") for level in targets.LEVELS]
    for one in rows:
        del one.restored["perceptual"]
    found = targets.picture_targets(Report(COLUMNS, rows=rows, settings={"seed": 0}))
    assert math.isnan(found[0].value) and found[0].verdict == "FAIL"
    assert "not measured" in targets.as_text(found)
    assert targets.as_text(found).endswith(f"{len(found) - 3} of {len(found)} musts reached")


def test_the_paired_test_sees_small_but_steady_differences() -> None:
    faces = np.random.default_rng(0)
    own = faces.normal(0.5, 0.1, 50)
    steady, _ = targets._paired("x", list(own + 0.002 + faces.normal(0, 0.001, 50)), list(own))
    assert steady.value < 1e-6 and steady.verdict == "must"
    chance, _ = targets._paired("x", list(own + faces.normal(0, 0.001, 50)), list(own))
    assert chance.value > 0.01 and chance.verdict == "FAIL"
    other_way, relative = targets._paired("x", list(own), list(own + 0.002))
    assert other_way.verdict == "FAIL" and relative.value < 0
    equal, _ = targets._paired("x", list(own), list(own))  # a prompt that nobody hears
    assert math.isnan(equal.value) and equal.verdict == "FAIL"
    gone, _ = targets._paired("x", [*own, math.nan], [*own, 0.5])
    assert "(n = 50)" in gone.what


def test_found_faces_and_their_error() -> None:
    assert targets.found_and_error([0.02, 0.04, math.nan, math.nan]) == (0.5, pytest.approx(0.03))
    share, error = targets.found_and_error([math.nan])
    assert share == 0 and math.isnan(error)


def test_everything_is_measured_in_one_go(shared, tiny_checkpoint, tmp_path, capsys) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    for source in sorted((shared / "faces" / "val").glob("*.jpg"))[:2]:
        with Image.open(source) as picture:
            picture.save(faces / f"{source.stem}.png")
    out = tmp_path / "out"
    words = [faces, "--model", tiny_checkpoint, "--weights", shared / "weights", "--out", out, "--quiet"]
    assert targets.main([str(word) for word in words]) == 1  # random weights restore nothing
    printed = capsys.readouterr().out
    for what in ("perceptual ratio, severe", "clean latents + degraded guide", "another's prompt, change",
                 "another's prompt, worse identity", "face found, severe (n = 2; input: ", "landmarks off",
                 "one face of 512 px", "file [MB]"):  # fmt: skip
        assert what in printed
    document = json.loads((out / "report.json").read_text("utf-8"))
    assert len(document["images"]) == 6
    by_name = {one["what"]: one for one in document["targets"]}
    assert by_name["file [MB]"]["value"] == pytest.approx(tiny_checkpoint.stat().st_size / 1e6)
    assert by_name["file [MB]"]["verdict"] == "must"
    assert {"labels.csv", "report.txt", "gallery.html", "worst.png"} <= {p.name for p in out.iterdir()}
    with Image.open(out / "worst.png") as sheet:
        assert sheet.size == (6 * 200, 3 * 200)


def test_missing_weights_end_in_one_line(tmp_path, capsys, tiny_checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OSDFACE_WEIGHTS", raising=False)
    words = [tmp_path / "none", "--model", tiny_checkpoint, "--out", tmp_path]
    assert targets.main([str(word) for word in words]) == 2
    assert "is no folder" in capsys.readouterr().err
