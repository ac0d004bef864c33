"""How the seconds of detect, align and paste grow with faces and pixels, on synthetic scenes.

    python -m benchmarks.cost --runs 3

The model's share by batch: `osdface bench --batch-size 1,2,4,8`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from osdface_core.cli.demo import demo_photo
from osdface_core.faces import align, detect, paste

from .measure import median_seconds

FACES, USUAL_FACES = (1, 2, 4, 8), 4
MEGAPIXELS, USUAL_MEGAPIXELS = (1.0, 3.0, 6.0, 12.0, 24.0), 12.0
STEPS = ("detect", "align", "paste")


def scene(count: int, megapixels: float) -> np.ndarray:
    """Compose a 4:3 photo (H, W, 3) uint8 with `count` (1 to 8) portraits of a quarter of its height.

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


def seconds(photo: np.ndarray, runs: int, device: str) -> list[float]:
    """Time detect, align and paste, medians over `runs`; the model between them is left out."""
    found = detect(photo, device=device)
    crops = align(photo, found, device=device)
    return [
        median_seconds(lambda: detect(photo, device=device), runs),
        median_seconds(lambda: align(photo, found, device=device).cpu(), runs),
        median_seconds(lambda: paste(photo, found, crops * 0.9 + 0.05, crops=crops), runs),
    ]


def fit(numbers: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Fit a line by least squares: fixed part, slope, largest distance of a value from it."""
    x, y = np.array(numbers), np.array(values)
    slope, fixed = np.polyfit(x, y, 1)
    return float(fixed), float(slope), float(np.abs(fixed + slope * x - y).max())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print points and fitted lines. Returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="medians over so many (3)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    scenes: dict[str, list[tuple[float, tuple[int, float]]]] = {
        "faces": [(n, (n, USUAL_MEGAPIXELS)) for n in FACES],
        "megapixels": [(m, (USUAL_FACES, m)) for m in MEGAPIXELS],
    }
    for what, steps in scenes.items():
        rows = [seconds(scene(*arguments), args.runs, args.device) for _, arguments in steps]
        numbers = [number for number, _ in steps]
        for step, values in zip(STEPS, zip(*rows, strict=True), strict=True):
            fixed, slope, off = fit(numbers, values)
            points = ", ".join(f"{n:g}: {v:.3f}" for n, v in zip(numbers, values, strict=True))
            print(
                f"{step} by {what}: {fixed:.3f} + {slope:.4f} n s (off by ≤ {off:.3f}); {points}", flush=True
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
