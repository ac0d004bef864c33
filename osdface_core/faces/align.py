"""From landmarks to aligned crops: the similarity transform, the antialiased warp, and how sharp a crop is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ImageError
from .face import CROP_SIZE, FFHQ_TEMPLATE, Face, Row
from .regions import (
    Photo,
    homogeneous,
    inverse,
    photo_device,
    photo_shape,
    read_region,
    resize_smooth,
    resizing,
    translation,
    warp,
)


def fit_similarity(points: np.ndarray, template: Sequence[tuple[float, float]] = FFHQ_TEMPLATE) -> np.ndarray:
    """Least-squares rotation, uniform scale and shift that carry `points` onto `template`.

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


def affine_rows(matrix: np.ndarray) -> tuple[Row, Row]:
    """A 2x3 array as the nested tuple that `Face.affine` holds."""
    (a, b, c), (d, e, f) = np.asarray(matrix, dtype=np.float64).tolist()
    return (a, b, c), (d, e, f)


def align(
    photo: Photo, faces: Sequence[Face], size: int = CROP_SIZE, *, device: torch.device | str | None = None
) -> Tensor:
    """Cut the faces out, upright and at one size.

    Only the rectangle around each face is read. Faces larger than the crop are low-pass filtered first;
    beyond the photo's border the picture is continued by reflection.

    Args:
        photo: (3, H, W) unit tensor, or (H, W, 3) array.
        faces: as found by `detect`.
        size: side of the crops [px].
        device: where to warp; the photo's by default.
    Returns:
        (N, 3, size, size) float32, unit range.
    Raises:
        ImageError: if the photo has another layout, or a face lies wholly outside it.
    """
    device = photo_device(photo, device)
    crops = [crop_face(photo, face, size, device) for face in faces]
    return torch.stack(crops) if crops else torch.zeros(0, 3, size, size, device=device)


def crop_face(photo: Photo, face: Face, size: int, device: torch.device) -> Tensor:
    """One aligned crop (3, size, size); see `align`."""
    height, width = photo_shape(photo)
    to_crop = resizing(size / CROP_SIZE, size / CROP_SIZE) @ homogeneous(face.matrix)
    to_photo = inverse(to_crop[:2])
    scale = float(np.sqrt(abs(np.linalg.det(to_crop[:2, :2]))))  # crop px per photo px
    left, top, right, bottom = crop_bounds(to_photo, size, margin=4 / min(scale, 1.0) + 1)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        raise ImageError(f"face at {face.box} lies outside the {width}x{height} photo: use the photo it was found in")
    region = read_region(photo, top, bottom, left, right, device)
    moved = translation(-left, -top) @ homogeneous(to_photo)
    if scale < 1:
        small = tuple(max(1, round(side * scale)) for side in region.shape[-2:])
        moved = resizing(small[1] / region.shape[-1], small[0] / region.shape[-2]) @ moved
        region = resize_smooth(region, small)
    return warp(region, moved[:2], (size, size), padding="reflection").clamp(0, 1)


def crop_bounds(to_photo: np.ndarray, size: int, margin: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the photo rectangle that the crop covers, ends exclusive [px]."""
    low, high = -0.5, size - 0.5
    corners = np.array([[low, high, high, low], [low, low, high, high], [1, 1, 1, 1]])
    xy = to_photo @ corners
    left, top = np.floor(xy.min(axis=1) - margin).astype(int)
    right, bottom = np.ceil(xy.max(axis=1) + margin).astype(int) + 1
    return int(left), int(top), int(right), int(bottom)


def sharpness(crops: Tensor) -> Tensor:
    """How much detail aligned crops carry at their own resolution, independent of contrast.

    Natural pictures have about equal strength in every octave of detail. This is the RMS of the finest octave
    of luma between brows and chin, divided by that of the octave two steps coarser, cut at 1: near 1 for a
    crisp face of 512 px or more, about 0.1 for one that was enlarged four times. Noise counts as detail.

    Args:
        crops: (N, 3, S, S) unit range.
    Returns:
        (N,) float32 on the crops' device, 0 to 1.
    """
    side = crops.shape[-1]
    area = crops[..., int(0.31 * side) : int(0.86 * side), int(0.25 * side) : int(0.75 * side)]
    luma = area.float().mul(crops.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    half = F.avg_pool2d(luma, 2)
    quarter = F.avg_pool2d(half, 2)
    eighth = F.avg_pool2d(quarter, 2)
    fine = _detail(luma, half)
    coarse = _detail(quarter, eighth)
    return (fine / coarse.clamp(min=1e-4)).clamp(max=1.0)


def _detail(image: Tensor, smaller: Tensor) -> Tensor:
    """(N,) RMS of what `image` has beyond its halved copy."""
    smooth = F.interpolate(smaller, image.shape[-2:], mode="bilinear", align_corners=False)
    return (image - smooth).square().mean(dim=(1, 2, 3)).sqrt()
