"""`osdface bench` on whole photos: idle shares by hand, fits of known lines, pictures, usage errors."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import cost, photos, plots
from osdface_core import OSDFacePipeline
from osdface_core.cli.batch import FileRestorer, one_by_one, overlapped
from osdface_core.cli.inputs import plan
from osdface_core.cli.main import main
from osdface_core.faces import detect


@pytest.fixture
def folder(tmp_path: Path, portraits: np.ndarray) -> Path:
    for number in range(3):
        Image.fromarray(portraits[:, 300:]).resize((150 + number, 150)).save(tmp_path / f"{number}.png")
    return tmp_path


def bench(checkpoint: Path, *arguments: Any) -> int:
    return main(
        [
            "bench", "--model", str(checkpoint), "--device", "cpu", "--quiet", "--detector", "mtcnn",
            *map(str, arguments),
        ]
    )  # fmt: skip


def test_photos(tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    report = tmp_path / "r.json"
    assert bench(tiny_checkpoint, "--photos", folder, "--runs", 2, "--json", report) == 0
    result = json.loads(report.read_text())
    assert (result["photos"], result["faces"]) == (3, 3)
    assert all(seconds > 0 for seconds in result["stages"].values())
    expected = (result["stages"]["detect"] + result["stages"]["paste"]) / result["stages"]["model"]
    assert result["photo_path"] == pytest.approx(expected)
    for way in ("one_by_one", "overlapped"):
        assert len(result[way]["seconds"]) == 2
        assert all(0 <= idle < 1 for idle in result[way]["idle"])
    assert "model idle" in capsys.readouterr().out
    assert sorted(p.name for p in folder.glob("*.png")) == ["0.png", "1.png", "2.png"], (
        "results are thrown away"
    )


@pytest.mark.parametrize(("runner", "idle"), [(one_by_one, 4 / 7), (overlapped, 0.0)])
def test_idle_is_what_the_model_waits(
    folder: Path, tiny_pipeline: OSDFacePipeline, monkeypatch: pytest.MonkeyPatch, runner: Any, idle: float
) -> None:
    """Every step takes 0.4 s. One by one the model works in 3 of the 7 slots from its first to its last."""

    def slowed(step: Any) -> Any:
        def wrapped(self: FileRestorer, given: Any) -> Any:
            start = time.perf_counter()
            result = step(self, given)
            time.sleep(max(0.0, 0.4 - (time.perf_counter() - start)))
            return result

        return wrapped

    for name in ("prepare", "restore", "finish"):
        monkeypatch.setattr(FileRestorer, name, slowed(getattr(FileRestorer, name)))
    jobs, _ = plan([str(folder)], folder / "out")
    passed = photos.run_pass(tiny_pipeline, jobs, {"detector": "mtcnn"}, runner)
    assert passed.idle == pytest.approx(idle, abs=0.15)
    assert len(passed.records) == len(passed.resident) == 3


def test_memory_with_its_picture(tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    picture = tmp_path / "memory" / "m.png"
    assert bench(tiny_checkpoint, "--memory", folder, "--plot", picture) == 0
    assert "3 photos: " in capsys.readouterr().out
    assert Image.open(picture).size[0] > 300


def test_a_fit_finds_its_line() -> None:
    found = cost.fit([[1, 5.5], [2, 7.5], [4, 11.5]])
    assert found["fixed"] == pytest.approx(3.5)
    assert found["slope"] == pytest.approx(2.0)
    assert found["off"] == pytest.approx(0.0, abs=1e-9)
    assert cost.fit([[0, 0.0], [1, 2.0], [2, 1.0]])["off"] == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_scenes_hold_their_faces(portraits: np.ndarray, count: int) -> None:
    photo = cost.scene(count, 2.0)
    assert photo.shape[0] * photo.shape[1] == pytest.approx(2e6, rel=0.01)
    assert len(detect(photo, "mtcnn")) == count


def test_the_picture_of_costs(tmp_path: Path) -> None:
    rows = [[1, 0.3, 0.1, 0.2], [2, 0.4, 0.2, 0.4]]
    fits = {
        f"{step} by {what}": cost.fit([[1, 0.3], [2, 0.4]])
        for step in cost.STEPS
        for what in ("faces", "megapixels")
    }
    result = {
        "model_faces": [[1, 1.0], [2, 2.0]],
        "model_batch": [[1, 1.0], [2, 0.9]],
        "photo_faces": rows,
        "photo_pixels": rows,
        "fits": {**fits, "model by faces": cost.fit([[1, 1.0], [2, 2.0]])},
    }
    plots.cost(result, tmp_path / "cost.png")
    assert Image.open(tmp_path / "cost.png").size[0] > 600
    assert "model by faces" in cost.table(result)


def test_usage_errors(tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert bench(tiny_checkpoint, "--photos", tmp_path / "none.png") == 2
    assert "none.png: no such file or folder" in capsys.readouterr().err
    assert bench(tiny_checkpoint, "--photos", folder, "--plot", "x.png") == 2
    assert "--plot draws --memory or --cost" in capsys.readouterr().err
