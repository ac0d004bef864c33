"""How much memory photos take: giants, crowds and long folders; each in a process of its own."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.memory import peak_bytes, reset_peak, resident_bytes
from osdface_core import OSDFacePipeline
from osdface_core.cli import restore as restore_command
from osdface_core.cli.batch import overlapped
from osdface_core.cli.demo import demo_photo
from osdface_core.cli.main import main
from osdface_core.faces import detect
from osdface_core.photo import restore_photo
from tests import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read and reset in Linux' way")
MB, CPU = 1e6, torch.device("cpu")
CROWD = (4, 32)


def load(checkpoint: Path) -> OSDFacePipeline:
    pipeline = OSDFacePipeline.from_pretrained(checkpoint, device="cpu", dtype="fp32")
    restore_command.load = lambda args: pipeline
    return pipeline


def restore(*arguments: object) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["restore", *map(str, arguments), "--detector", "mtcnn"]) == 0
    return said.getvalue()


def say_peak(name: object, work: Callable[[], object], unit: float = MB) -> None:
    """Say how far memory rises above where it was."""
    before = resident_bytes()
    reset_peak(CPU)
    work()
    print(name, (peak_bytes(CPU) - before) / unit)


def giants(checkpoint: Path, folder: Path) -> None:
    load(checkpoint)
    pair = Image.fromarray(demo_photo())

    def photo(width: int, height: int, name: str) -> Path:
        canvas = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        canvas.paste(pair.resize((width // 3, width // 6)), (width // 8, height // 4))
        canvas.save(folder / name)
        return folder / name

    def two_faces(file: Path) -> None:
        said = restore(file, "-o", folder / f"out_{file.name}")
        assert "  2 faces  " in said, said

    def peak(file: Path) -> int:
        reset_peak(CPU)
        two_faces(file)
        return peak_bytes(CPU)

    # What a small photo takes, the networks' work among it, is no copy of a giant's pixels.
    small = max(peak(photo(1600, 1200, f"{number}.png")) for number in range(2))
    for name in ("giant.jpg", "giant.png", "giant.tif"):
        print(name, (peak(photo(6000, 4500, name)) - small) / (6000 * 4500 * 3))


def long_folder(checkpoint: Path, folder: Path) -> None:
    load(checkpoint)
    restore_command.runner_for = lambda *arguments: overlapped  # holds the most
    pair, sizes, say = Image.fromarray(demo_photo()), [], restore_command.say
    (folder / "in").mkdir()
    for number in range(48):
        pair.crop((0, 0, 300 + number % 7, 300)).save(folder / "in" / f"{number:03}.jpg")

    def noting(*line: str, **how: bool) -> None:
        sizes.append(resident_bytes() / MB)
        say(*line, **how)

    restore_command.say = noting
    restore(folder / "in", "-o", folder / "out")
    assert len(sizes) == 48
    print("growth", sorted(sizes[-12:])[6] - sorted(sizes[12:24])[6])


def crowds(checkpoint: Path) -> None:
    pipeline, photo = load(checkpoint), np.asarray(demo_photo())
    face = detect(photo, "mtcnn")[0]
    for count in CROWD:
        say_peak(count, lambda: restore_photo(pipeline, photo, faces=[face] * count, batch_size=4))  # noqa: B023


def measured(work: Callable[..., None], folder: Path, *arguments: Path) -> dict[str, float]:
    """What the work says: a name and a number per line."""
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    (said,) = processes.run(work, folder, *arguments)
    return {name: float(value) for name, value in (line.split() for line in said.splitlines())}


def test_a_giant_photo_is_held_less_than_three_times(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """From the file read to the file written: two copies, and what detection and blending add."""
    copies = measured(giants, tmp_path, tiny_checkpoint, tmp_path)
    assert set(copies) == {"giant.jpg", "giant.png", "giant.tif"}
    assert max(copies.values()) <= 2.7, copies


def test_a_long_folder_takes_no_more_memory_than_a_short_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    grown = measured(long_folder, tmp_path, tiny_checkpoint, tmp_path)["growth"]
    # One float photo (1.1 MB) kept of each would be 32; beside other work the allocator alone has taken 9.5.
    assert grown < 14, f"{grown} MB over 30 photos"


def test_a_crowd_takes_its_crops_and_no_larger_batch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """28 crops are 88 MB; before, after, and what pasting adds must stay within three times that."""
    few, many = measured(crowds, tmp_path, tiny_checkpoint).values()
    crops = (CROWD[1] - CROWD[0]) * 3 * 512 * 512 * 4 / MB
    assert many - few < 3 * crops, (few, many)
