"""Labels that evaluation groups by, against published colours and made-up landmarks."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools import load_tool

labels = load_tool("face_labels")


def test_typology_angle() -> None:
    """White, the sRGB primaries' published L* and b* (D65), and a colour on the curve's linear part."""
    expected = {
        (1, 1, 1): (100.0, 0.0), (1, 0, 0): (53.24, 67.20), (0, 1, 0): (87.73, 83.18),
        (0, 0, 1): (32.30, -107.86), (0.02, 0.02, 0.03): (1.449, -0.965),
    }  # fmt: skip
    for colour, (lightness, yellow) in expected.items():
        face = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).expand(3, 512, 512)
        angle = math.degrees(math.atan2(lightness - 50, yellow))
        assert labels.typology_angle(face) == pytest.approx(angle, abs=0.5)


def test_turn_does_not_depend_on_tilt_or_size() -> None:
    points = np.array([[0.0, 0], [10, 0], [7, 8], [2, 14], [8, 14]])
    assert labels.turn(points) == pytest.approx(0.2)
    a = math.radians(30)
    rotation = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    assert labels.turn(3 * points @ rotation.T + 5) == pytest.approx(0.2)
    points[2, 0] = 5
    assert labels.turn(points) == 0


def test_table_that_evaluation_reads(tmp_path: Path) -> None:
    from osdface_trainer.evaluation.intervals import read_groups

    faces = tmp_path / "faces"
    faces.mkdir()
    for name, value in (("pale", (240, 205, 185)), ("deep", (75, 50, 38))):
        Image.new("RGB", (256, 256), value).save(faces / f"{name}.png")
    assert labels.main([str(faces), "-o", str(tmp_path / "labels.csv")]) == 0
    with (tmp_path / "labels.csv").open() as stream:
        rows = {row["file"]: (row["skin"], row["pose"]) for row in csv.DictReader(stream)}
    assert rows == {"pale.png": ("light", "unknown"), "deep.png": ("dark", "unknown")}
    assert read_groups(tmp_path / "labels.csv", ("skin",))["deep"] == {"skin": "dark"}
    assert labels.main([str(tmp_path / "none"), "-o", str(tmp_path / "x.csv")]) == 1
