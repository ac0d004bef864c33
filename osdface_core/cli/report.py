"""What a run leaves besides the photos: crops, before/after pictures, a JSON report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import ImageError
from ..files import writing
from ..images import from_unit

GAP = 8  # [px] between before and after
LARGEST = 4096  # [px], longer side of one half: a picture to look at, whatever the photo's size


def comparison(before: np.ndarray, after: np.ndarray) -> Image.Image:
    """Join two photos in one picture: side by side if they are upright, one above the other if wide.

    Args:
        before, after: (H, W, 3) uint8, uint16 or float32; `before` is enlarged to the size of `after`.
    Returns:
        8-bit RGB.
    """
    right = _viewable(after)
    left = _viewable(before).resize(right.size, Image.Resampling.LANCZOS)
    width, height = right.size
    wide = width > 1.25 * height
    size = (width, 2 * height + GAP) if wide else (2 * width + GAP, height)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (0, height + GAP) if wide else (width + GAP, 0))
    return canvas


def _viewable(pixels: np.ndarray) -> Image.Image:
    """8-bit, at most LARGEST px on its longer side."""
    step = -(-max(pixels.shape[:2]) // (2 * LARGEST))
    pixels = pixels[::step, ::step]  # so that a 16-bit giant is not copied whole
    if pixels.dtype == np.uint16:
        pixels = (pixels.astype(np.float32) / 257.0).round().astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = (np.nan_to_num(pixels).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image


def save_picture(image: Image.Image, path: Path) -> None:
    """Write an 8-bit picture whole or not at all.

    Raises:
        ImageError: the disk is full or the folder cannot be written.
    """
    with writing(path, ImageError) as temporary:
        image.save(temporary)


def crop_pictures(crops: Tensor, restored: Tensor, stem: Path) -> list[tuple[Path, Image.Image]]:
    """Turn the aligned faces into pictures named `stem`_face0_before.png, `stem`_face0_after.png, ..."""
    pictures = []
    for number, pair in enumerate(zip(crops, restored, strict=True)):
        for when, face in zip(("before", "after"), pair, strict=True):
            path = stem.with_name(f"{stem.name}_face{number}_{when}.png")
            pictures.append((path, Image.fromarray(from_unit(face, np.uint8))))
    return pictures


def save_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON whole or not at all.

    Raises:
        ImageError: the disk is full or the folder cannot be written.
    """
    with writing(path, ImageError) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
