"""How much detail an aligned face carries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..color import luma
from ..photo_array import PhotoArray
from .align import cut
from .face import CROP_SIZE, Face
from .geometry import homogeneous, translation

CENTRE = (128, 168, 256)
"""Left, top and side of the part of a 512 crop whose sharpness is measured [px]."""


def sharpness(crops: Tensor) -> Tensor:
    """Measure how much detail aligned crops carry at their own resolution, independent of contrast.

    Natural pictures have about equal strength in every octave of detail. This is the RMS of the finest octave
    of luma around eyes, nose and mouth, divided by that of the octave two steps coarser, cut at 1: near 1 for
    a crisp face of 512 px or more, about 0.1 for one that was enlarged four times. Noise counts as detail.

    Args:
        crops: (N, 3, S, S) unit range, as `align` cuts them.
    Returns:
        (N,) float32 on the crops' device, 0 to 1.
    """
    unit = crops.shape[-1] / CROP_SIZE
    left, top, side = (round(value * unit) for value in CENTRE)
    return _octaves(crops[..., top : top + side, left : left + side].float())


def measure(photo: PhotoArray, faces: Sequence[Face], device: torch.device) -> list[float]:
    """Measure the `sharpness` of each face, reading only the middle of each crop."""
    if not faces:
        return []
    shift = translation(-CENTRE[0], -CENTRE[1])
    crops = torch.empty(len(faces), 3, CENTRE[2], CENTRE[2], device=device)
    for number, face in enumerate(faces):
        crops[number] = cut(photo, shift @ homogeneous(face.matrix), CENTRE[2], device)
    return _octaves(crops.clamp_(0, 1)).tolist()


def _octaves(area: Tensor) -> Tensor:
    whole = luma(area)
    half = F.avg_pool2d(whole, 2)
    quarter = F.avg_pool2d(half, 2)
    eighth = F.avg_pool2d(quarter, 2)
    return (_detail(whole, half) / _detail(quarter, eighth).clamp(min=1e-4)).clamp(max=1.0)


def _detail(image: Tensor, smaller: Tensor) -> Tensor:
    """(N,) RMS of what `image` has beyond its halved copy."""
    smooth = F.interpolate(smaller, image.shape[-2:], mode="bilinear", align_corners=False)
    return (image - smooth).square().mean(dim=(1, 2, 3)).sqrt()
