"""From landmarks to aligned crops: the similarity transform and the antialiased warp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError
from ..photo_array import PhotoArray, Pixels
from .face import CROP_SIZE, FFHQ_TEMPLATE, Face, MatrixRow
from .geometry import homogeneous, inverse, resize_smooth, resizing, translation, warp


def fit_similarity(points: np.ndarray, template: Sequence[tuple[float, float]] = FFHQ_TEMPLATE) -> np.ndarray:
    """Fit the rotation, uniform scale and shift that carry `points` onto `template`, by least squares.

    In the plane this is linear regression over complex numbers, which cannot mirror. Equal to Umeyama (1991),
    Eq. 40-42, for two dimensions.

    Args:
        points: (n, 2) photo coordinates [px].
        template: n points of the 512 crop [px].
    Returns:
        (2, 3) float64, photo -> crop.
    Raises:
        ImageError: if the points coincide or are not finite.
    """
    source = np.asarray(points, dtype=np.float64) @ np.array([1, 1j])
    target = np.asarray(template, dtype=np.float64) @ np.array([1, 1j])
    centred = source - source.mean()
    spread = float((np.abs(centred) ** 2).sum())
    if not np.isfinite(spread) or spread < 1e-9:
        raise ImageError("landmarks coincide or are not finite: expected five different points; detect again")
    turn = (centred.conj() * (target - target.mean())).sum() / spread
    shift = target.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def affine_rows(matrix: np.ndarray) -> tuple[MatrixRow, MatrixRow]:
    """Convert a 2x3 array to the nested tuple that `Face.affine` holds."""
    (a, b, c), (d, e, f) = np.asarray(matrix, dtype=np.float64).tolist()
    return (a, b, c), (d, e, f)


def align(
    photo: Pixels | PhotoArray,
    faces: Sequence[Face],
    size: int = CROP_SIZE,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Cut the faces out, upright and at one size.

    Only the rectangle around each face is read. Faces larger than the crop are low-pass filtered first;
    beyond the photo's border the picture is continued by reflection.

    Args:
        photo: (3, H, W) unit tensor, (H, W, 3) array, or Pillow image.
        faces: as found by `detect`.
        size: side of the crops [px].
        device: where to warp; the photo's by default.
    Returns:
        (N, 3, size, size) float32, unit range.
    Raises:
        ImageError: if the photo has another layout, or a face lies wholly outside it.
    """
    photo = PhotoArray.of(photo)
    device = torch.device(device or photo.device)
    crops = torch.empty(len(faces), 3, size, size, device=device)
    for number, face in enumerate(faces):
        to_crop = resizing(size / CROP_SIZE, size / CROP_SIZE) @ homogeneous(face.matrix)
        crops[number] = cut(photo, to_crop, size, device)
    return crops.clamp_(0, 1)


def cut(
    photo: PhotoArray, to_crop: np.ndarray, size: int, device: torch.device, outside: float | None = None
) -> Tensor:
    """Sample a square of the photo through any similarity.

    Args:
        to_crop: 3x3, photo px -> crop px.
        size: side of the result [px].
        outside: value beyond the photo's border; None continues the picture by reflection.
    Returns:
        (3, size, size) float32, unit range up to the overshoot of bicubic interpolation.
    Raises:
        ImageError: if the square lies wholly outside the photo.
    """
    height, width = photo.shape
    to_photo = inverse(to_crop[:2])
    scale = float(np.sqrt(abs(np.linalg.det(to_crop[:2, :2]))))  # crop px per photo px
    left, top, right, bottom = crop_bounds(to_photo, size, margin=4 / min(scale, 1.0) + 1)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        raise ImageError(
            f"a face lies outside the {width}x{height} photo: pass the photo it was found in, "
            "or its scale when pasting"
        )
    region = photo.region((top, bottom, left, right), device)
    moved = translation(-left, -top) @ homogeneous(to_photo)
    if scale < 1:
        small = (max(1, round(region.shape[-2] * scale)), max(1, round(region.shape[-1] * scale)))
        moved = resizing(small[1] / region.shape[-1], small[0] / region.shape[-2]) @ moved
        region = resize_smooth(region, small)
    if outside is not None:
        return warp(region - outside, moved[:2], (size, size), padding="zeros") + outside
    return warp(region, moved[:2], (size, size), padding="reflection")


def crop_bounds(to_photo: np.ndarray, size: int, margin: float) -> tuple[int, int, int, int]:
    """Find the photo rectangle that the crop covers: left, top, right, bottom, ends exclusive [px]."""
    low, high = -0.5, size - 0.5
    corners = np.array([[low, high, high, low], [low, low, high, high], [1, 1, 1, 1]])
    xy = to_photo @ corners
    left, top = np.floor(xy.min(axis=1) - margin).astype(int)
    right, bottom = np.ceil(xy.max(axis=1) + margin).astype(int) + 1
    return int(left), int(top), int(right), int(bottom)
