"""Pictures that a detector looks at (shrunk copy, tiles, turned, padded) and the way back to the photo."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..photo_array import Area, PhotoArray
from .geometry import resize_smooth, resizing, translation, warp


@dataclass(frozen=True)
class View:
    """A picture for the detector.

    Attributes:
        image: (3, h, w) float32, unit range.
        to_photo: 3x3, view px -> photo px; a similarity up to rounding of sizes.
        inner: sides (left, top, right, bottom) that are cuts through the photo rather than its border; a face
            that touches one is seen whole by the neighbouring tile.
    """

    image: Tensor
    to_photo: np.ndarray
    inner: tuple[bool, bool, bool, bool] = (False, False, False, False)

    @property
    def scale(self) -> float:
        """Photo pixels per view pixel."""
        return float(math.sqrt(abs(np.linalg.det(self.to_photo[:2, :2]))))


def whole(photo: PhotoArray, long_side: float, device: torch.device) -> View:
    """Shrink the photo so that its longer side is at most `long_side` [px]."""
    height, width = photo.shape
    ratio = min(1.0, long_side / max(height, width))
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    return View(
        shrunk(photo, (0, height, 0, width), size, device), resizing(width / size[1], height / size[0])
    )


def shrunk(photo: PhotoArray, area: Area, size: tuple[int, int], device: torch.device) -> Tensor:
    """Resize an area (top, bottom, left, right) of the photo, low-pass filtered, in little memory."""
    top, bottom, left, right = area
    picture = photo.pillow(area)
    if picture is not None:  # Pillow does this several times faster
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=1.0)
        return PhotoArray.of(np.array(picture)).region((0, size[0], 0, size[1]), device)
    step = 2 ** max(0, int(math.log2(max(min((bottom - top) / size[0], (right - left) / size[1]), 1))))
    if step == 1:
        return resize_smooth(photo.region(area, device).clamp(0, 1), size).clamp(0, 1)
    band = max(1, 2**22 // (right - left) // step) * step
    parts = [
        F.avg_pool2d(
            photo.region((y, min(y + band, bottom), left, right), device).clamp(0, 1)[None],
            step,
            ceil_mode=True,
        )
        for y in range(top, bottom, band)
    ]
    return resize_smooth(torch.cat(parts, dim=2)[0], size).clamp(0, 1)


def tiles(photo: PhotoArray, scale: float, side: int, overlap: int, device: torch.device) -> Iterator[View]:
    """Cut the photo into overlapping square tiles.

    Args:
        scale: view px per photo px, at most 1.
        side: of a tile [view px].
        overlap: of neighbouring tiles [view px]; faces up to this size are whole in one of them.
    """
    height, width = photo.shape
    for top, bottom in spans(height, round(side / scale), round(overlap / scale)):
        for left, right in spans(width, round(side / scale), round(overlap / scale)):
            size = (max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale)))
            matrix = translation(left, top) @ resizing((right - left) / size[1], (bottom - top) / size[0])
            inner = (left > 0, top > 0, right < width, bottom < height)
            yield View(shrunk(photo, (top, bottom, left, right), size, device), matrix, inner)


def spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of equally long, evenly spread pieces that cover `length` with at least `overlap`."""
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - overlap) / (side - overlap))
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    return [(start, start + side) for start in starts]


def padded(view: View, fraction: float = 0.5) -> View:
    """Frame the picture with its repeated border: faces that fill the photo are found inside it."""
    height, width = view.image.shape[-2:]
    across, down = int(width * fraction), int(height * fraction)
    image = F.pad(view.image[None], (across, across, down, down), mode="replicate")[0]
    return View(image, view.to_photo @ translation(-across, -down))


def turned(view: View, degrees: float) -> View:
    """Turn the picture counter-clockwise on a canvas that holds all of it; corners repeat the border."""
    height, width = view.image.shape[-2:]
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    size = (
        max(1, round(abs(height * cos) + abs(width * sin))),
        max(1, round(abs(height * sin) + abs(width * cos))),
    )
    to_view = (
        translation((width - 1) / 2, (height - 1) / 2)
        @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        @ translation(-(size[1] - 1) / 2, -(size[0] - 1) / 2)
    )
    image = warp(view.image, to_view[:2], size, padding="border", mode="bilinear")
    return View(image, view.to_photo @ to_view)


def rows_to_photo(rows: np.ndarray, view: View) -> np.ndarray:
    """Carry detector rows (n, 15) from view to photo pixels; boxes stay upright and keep their size."""
    rows = rows.astype(np.float64)
    linear, shift = view.to_photo[:2, :2], view.to_photo[:2, 2]
    points = rows[:, 5:].reshape(-1, 5, 2) @ linear.T + shift
    low, high = rows[:, :2], rows[:, 2:4]
    middle = (low + high) / 2 @ linear.T + shift
    half = (high - low) / 2 @ (np.abs(linear) / max(np.abs(linear).sum(axis=1).max() / view.scale, 1)).T
    return np.concatenate((middle - half, middle + half, rows[:, 4:5], points.reshape(-1, 10)), axis=1)


def drop_cut(rows: np.ndarray, view: View, margin: float = 2.0) -> np.ndarray:
    """Drop the faces that an inner side of a tile cuts through."""
    height, width = view.image.shape[-2:]
    left, top, right, bottom = view.inner
    cut = (
        (left & (rows[:, 0] < margin))
        | (top & (rows[:, 1] < margin))
        | (right & (rows[:, 2] > width - 1 - margin))
        | (bottom & (rows[:, 3] > height - 1 - margin))
    )
    return rows[~cut]
