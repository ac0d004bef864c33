"""The benchmarks of whole photos: idle shares by hand, fits of known lines, usage errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import cost, photos
from osdface_core import OSDFacePipeline
from osdface_core.cli.batch import FileRestorer, one_by_one
from osdface_core.cli.inputs import plan
from osdface_core.faces import detect
from osdface_core.options import DetectOptions


@pytest.fixture
def folder(tmp_path: Path, portraits: np.ndarray) -> Path:
    for number in range(3):
        Image.fromarray(portraits[:, 300:]).resize((150 + number, 150)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_photos(tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    report = tmp_path / "r.json"
    model = ["--model", str(tiny_checkpoint), "--device", "cpu", "--detector", "mtcnn"]
    assert photos.main([str(folder), *model, "--runs", "2", "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    assert result["faces"] == len(result["resident_mib"]) == 3
    assert all(seconds > 0 for seconds in result["stages"].values())
    for way in ("one by one", "side by side"):
        assert len(result["seconds"][way]) == 2
        assert 0 <= result["idle"][way] < 1
    shown = capsys.readouterr().out
    assert (
        "model idle" in shown
        and "3 photos, " in shown
        and f"at most {max(result['resident_mib']):.0f}" in shown
    )
    assert sorted(p.name for p in folder.glob("*.png")) == ["0.png", "1.png", "2.png"], (
        "results are thrown away"
    )


def test_idle_is_what_the_model_waits(
    folder: Path, tiny_pipeline: OSDFacePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step takes a second of this clock. The model works in 3 of the 7 from its first to its last."""
    done: list[str] = []
    monkeypatch.setattr(photos, "time", SimpleNamespace(perf_counter=lambda: float(len(done))))

    def timed(step: Any) -> Any:
        def wrapped(self: FileRestorer, given: Any) -> Any:
            result = step(self, given)
            done.append(step.__name__)
            return result

        return wrapped

    for name in ("prepare", "restore", "finish"):
        monkeypatch.setattr(FileRestorer, name, timed(getattr(FileRestorer, name)))
    jobs, _ = plan([str(folder)], folder / "out")
    passed = photos.run_pass(tiny_pipeline, jobs, DetectOptions("mtcnn"), one_by_one)
    assert passed.idle == pytest.approx(4 / 7)
    assert len(passed.records) == len(passed.resident) == 3


def test_a_fit_finds_its_line() -> None:
    assert cost.fit([1, 2, 4], [5.5, 7.5, 11.5]) == pytest.approx((3.5, 2.0, 0.0), abs=1e-9)
    assert cost.fit([0, 1, 2], [0.0, 2.0, 1.0])[2] == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_scenes_hold_their_faces(portraits: np.ndarray, count: int) -> None:
    photo = cost.scene(count, 2.0)
    assert photo.shape[0] * photo.shape[1] == pytest.approx(2e6, rel=0.01)
    assert len(detect(photo, "mtcnn")) == count


def test_costs_are_printed_with_their_lines(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(cost, "scene", lambda count, megapixels: (count, megapixels))
    monkeypatch.setattr(cost, "seconds", lambda s, *_: [1 + s[0], 2 + 2 * s[1], 1 + s[0] * s[1]])
    assert cost.main([]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["detect by faces"].startswith("1.000 + 1.0000 n")
    assert lines["align by megapixels"].startswith("2.000 + 2.0000 n")
    assert lines["paste by faces"].startswith("1.000 + 12.0000 n") and "8: 97.000" in lines["paste by faces"]
    assert lines["paste by megapixels"].startswith("1.000 + 4.0000 n")


def test_seconds_of_a_photo_are_positive() -> None:
    assert all(value > 0 for value in cost.seconds(cost.scene(1, 0.2), 1, "cpu"))


def test_a_photo_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        photos.main([str(tmp_path / "none.png")])
    assert caught.value.code == 2
    assert "none.png: no such file or folder" in capsys.readouterr().err
