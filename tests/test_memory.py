"""How much memory photos take: giants, crowds and long folders; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read and reset in Linux' way")
ROOT = Path(__file__).resolve().parents[1]

START = """
import contextlib, io, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from benchmarks.memory import peak_bytes, reset_peak, resident_bytes
from osdface_core.cli import restore as restore_command
from osdface_core.cli.batch import overlapped
from osdface_core.cli.demo import demo_photo
from osdface_core.cli.main import main
from osdface_core import OSDFacePipeline

torch.set_num_threads(1)
MB, CPU = 1e6, torch.device("cpu")
checkpoint, folder = sys.argv[1], Path(sys.argv[2])
pipeline = OSDFacePipeline.from_pretrained(checkpoint, device="cpu", dtype="fp32")
restore_command.load = lambda args: pipeline
pair = Image.fromarray(demo_photo())

def restore(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["restore", *map(str, arguments), "--detector", "mtcnn"]) == 0
    return said.getvalue()

def peak(*arguments):
    before = resident_bytes()
    reset_peak(CPU)
    said = restore(*arguments)
    return (peak_bytes(CPU) - before) / MB, said
"""

GIANT = """
def photo(width, height, name):
    canvas = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    canvas.paste(pair.resize((width // 3, width // 6)), (width // 8, height // 4))
    canvas.save(folder / name)

photo(1600, 1200, "small.png")
restore(folder / "small.png", "-o", folder / "o.png")
for name in ("giant.jpg", "giant.png", "giant.tif"):
    photo(6000, 4500, name)
    taken, said = peak(folder / name, "-o", folder / f"out_{name}")
    assert "  2 faces  " in said, said
    print(name, taken / (6000 * 4500 * 3 / MB))
"""

FOLDER = """
restore_command.runner_for = lambda *arguments: overlapped  # holds the most
(folder / "in").mkdir()
for number in range(80):
    pair.crop((0, 0, 300 + number % 7, 300)).save(folder / "in" / f"{number:03}.jpg")
sizes = []
say = restore_command.say
restore_command.say = lambda *line, **how: (sizes.append(resident_bytes() / MB), say(*line, **how))
restore(folder / "in", "-o", folder / "out")
assert len(sizes) == 80
print("growth", sorted(sizes[-20:])[10] - sorted(sizes[20:40])[10])
"""

CROWD = """
from osdface_core.photo import restore_photo
from osdface_core.faces import detect
face = detect(np.asarray(pair), "mtcnn")[0]
photo = np.asarray(pair)
for count in (4, 64):
    before = resident_bytes()
    reset_peak(CPU)
    restore_photo(pipeline, photo, faces=[face] * count, batch_size=4)
    print(count, (peak_bytes(CPU) - before) / MB)
"""


def measured(code: str, checkpoint: Path, folder: Path) -> dict[str, float]:
    """What the code prints: a name and a number per line."""
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, "-c", START + code, str(checkpoint), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}


def test_a_giant_photo_is_held_less_than_three_times(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """From the file read to the file written, with all that detection and blending take."""
    copies = measured(GIANT, tiny_checkpoint, tmp_path)
    assert set(copies) == {"giant.jpg", "giant.png", "giant.tif"}
    assert max(copies.values()) <= 3.0, copies


def test_a_long_folder_takes_no_more_memory_than_a_short_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    grown = measured(FOLDER, tiny_checkpoint, tmp_path)["growth"]
    assert grown < 12, f"{grown} MB over 40 photos"


def test_a_crowd_takes_its_crops_and_no_larger_batch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """64 crops are 201 MB; before, after, and what pasting adds must stay within three times that."""
    peaks = measured(CROWD, tiny_checkpoint, tmp_path)
    crops = 60 * 3 * 512 * 512 * 4 / 1e6
    assert peaks["64"] - peaks["4"] < 3 * crops, peaks
