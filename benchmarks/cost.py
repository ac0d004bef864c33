"""How seconds grow with faces, pixels and batch: measured on synthetic scenes, fitted by straight lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from osdface_core.cli.demo import demo_photo
from osdface_core.faces import Face, align, detect, paste
from osdface_core.pipeline import FacePipeline

from .models import faces as random_faces

FACES = (1, 2, 4, 8)
BATCHES = (1, 2, 4, 8)
MEGAPIXELS = (1.0, 3.0, 6.0, 12.0, 24.0)
USUAL_FACES, USUAL_MEGAPIXELS = 4, 12.0
"""What stays put while the other grows."""
STEPS = ("detect", "align", "paste")
Say = Callable[[str], None]


def scene(count: int, megapixels: float) -> np.ndarray:
    """A 4:3 photo (H, W, 3) uint8 with `count` (1 to 8) portraits of a quarter of its height.

    Raises:
        OSDFaceError: the packages that ship the portraits are missing.
    """
    pair = Image.fromarray(demo_photo())
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width, side = round(height * 4 / 3), height // 4
    canvas = pair.filter(ImageFilter.GaussianBlur(20)).resize((width, height))
    for number in range(count):
        portrait = pair.crop((300 * (number % 2), 0, 300 * (number % 2) + 300, 300))
        column, row = number % 4, number // 4
        place = (width // 8 * (2 * column + 1) - side // 2, height // 4 * (2 * row + 1) - side // 2)
        canvas.paste(portrait.resize((side, side), Image.Resampling.LANCZOS), place)
    return np.array(canvas)


def measure(pipeline: FacePipeline, runs: int, say: Say) -> dict[str, Any]:
    """Medians over `runs`, and the fits.

    Returns:
        model_faces: [faces, seconds] at the pipeline's own batch; model_batch: [batch, seconds per face];
        photo_faces, photo_pixels: [faces or megapixels, seconds of detect, align, paste]; fits: per name the
        fixed part, the slope, and the largest distance of a measured value from the line, all in seconds.
    """
    model_faces = [[n, _model(pipeline, n, None, runs)] for n in FACES]
    say(f"model by faces: {_shown(model_faces)}")
    model_batch = [[n, _model(pipeline, n, n, runs) / n] for n in BATCHES]
    say(f"model by batch, per face: {_shown(model_batch)}")
    photo_faces = [[n, *_photo(pipeline, scene(n, USUAL_MEGAPIXELS), runs)] for n in FACES]
    say(f"detect, align, paste by faces: {_shown(photo_faces)}")
    photo_pixels = [[m, *_photo(pipeline, scene(USUAL_FACES, m), runs)] for m in MEGAPIXELS]
    say(f"detect, align, paste by megapixels: {_shown(photo_pixels)}")
    fits = {"model by faces": fit(model_faces)}
    for i, step in enumerate(STEPS, start=1):
        fits[f"{step} by faces"] = fit([[row[0], row[i]] for row in photo_faces])
        fits[f"{step} by megapixels"] = fit([[row[0], row[i]] for row in photo_pixels])
    return {
        "model_faces": model_faces,
        "model_batch": model_batch,
        "photo_faces": photo_faces,
        "photo_pixels": photo_pixels,
        "fits": fits,
    }


def fit(rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """Least squares of the second column on the first."""
    x, y = np.array(rows, dtype=float).T
    slope, fixed = np.polyfit(x, y, 1)
    return {"fixed": fixed, "slope": slope, "off": float(np.abs(fixed + slope * x - y).max())}


def table(result: dict[str, Any]) -> str:
    """The fits for people."""
    lines = ["seconds = fixed + slope × number:"]
    for name, line in result["fits"].items():
        lines.append(
            f"{name:24}{line['fixed']:8.3f} + {line['slope']:.4f} × n   (off by ≤ {line['off']:.3f})"
        )
    lines.append("model, seconds per face by batch: " + _shown(result["model_batch"]))
    return "\n".join(lines)


def _model(pipeline: FacePipeline, count: int, batch: int | None, runs: int) -> float:
    crops = random_faces(count, 512, pipeline.device)
    return _median(lambda: pipeline.restore(crops, batch_size=batch), runs)


def _photo(pipeline: FacePipeline, photo: np.ndarray, runs: int) -> list[float]:
    """Seconds of detect, align and paste; the model between them is left out."""
    device = pipeline.device
    found: list[Face] = []
    crops = torch.empty(0)

    def find() -> None:
        found[:] = detect(photo, device=device)

    def cut() -> Tensor:
        return align(photo, found, device=device)

    seconds = [_median(find, runs), _median(cut, runs)]
    crops = cut()
    restored = crops * 0.9 + 0.05
    return [*seconds, _median(lambda: paste(photo, found, restored, crops=crops), runs)]


def _median(call: Callable[[], Any], runs: int) -> float:
    times = []
    for number in range(runs + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number:  # the first one warms up
            times.append(time.perf_counter() - start)
    return median(times)


def _shown(rows: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"{row[0]:g}: " + "/".join(f"{value:.2f}" for value in row[1:]) for row in rows)
