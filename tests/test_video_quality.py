"""The clip that judges videos: the face is where it is said to be, and flicker is what changes there."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("av", reason='videos need PyAV: pip install "osdface[video]"')

TOOL = Path(__file__).resolve().parents[1] / "tools" / "video_quality.py"
spec = importlib.util.spec_from_file_location("video_quality", TOOL)
assert spec and spec.loader
tool = importlib.util.module_from_spec(spec)
sys.modules["video_quality"] = tool
spec.loader.exec_module(tool)
SIZE = (320, 240)


@pytest.fixture
def face(tmp_path: Path) -> Path:
    """Smooth waves, which small frames keep."""
    y, x = np.mgrid[:512, :512] / 512
    waves = [128 + 100 * np.sin(6 * x + 3 * y + k) for k in range(3)]
    Image.fromarray(np.stack(waves, 2).astype(np.uint8)).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def test_the_face_is_where_it_is_said_to_be(face: Path) -> None:
    frames = list(tool.clean_frames(face, 12, SIZE))
    crops = tool.crops_of(frames, tool.placements(SIZE))[:, :, tool.INNER, tool.INNER]
    truth = torch.from_numpy(np.array(Image.open(face))).permute(2, 0, 1)[:, tool.INNER, tool.INNER] / 255
    assert (crops - truth).abs().max() < 0.02
    assert np.abs(frames[0].astype(int) - frames[11]).mean() > 5, "it does not move"


def test_flicker_is_what_changes_in_the_face(face: Path) -> None:
    frames = list(tool.clean_frames(face, 4, SIZE))
    still = tool.flicker(tool.crops_of(frames, tool.placements(SIZE)))
    brighter = [np.clip(frame + 6.0 * (i % 2), 0, 255) for i, frame in enumerate(frames)]
    noisy = [tool.degraded(frame, i) for i, frame in enumerate(frames)]
    assert still < 1.0
    assert 5.0 < tool.flicker(tool.crops_of(brighter, tool.placements(SIZE))) < 7.0
    assert tool.flicker(tool.crops_of(noisy, tool.placements(SIZE))) > 2.0 + still


def test_the_face_of_a_film_is_where_its_landmarks_are(portraits: np.ndarray) -> None:
    """The face moves two pixels a frame; its crops stay alike."""
    frames = [np.ascontiguousarray(portraits[:, 2 * n : 2 * n + 280]) for n in range(8)]
    still = tool.flicker(tool.crops_of(frames, tool.found(frames)))
    assert still < 0.5 * tool.flicker(tool.crops_of(frames, [tool.found(frames[:1])[0]] * 8))
