"""Colour differences as people see them: CIEDE2000 between pictures, of pixels and of large areas."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Column, Metric

AREA_SIGMA = 8.0
"""[px] blur before areas are compared: at 512 px the tint of a cheek or a lip is left, texture is not."""
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
"""Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1)."""


class LabPair(NamedTuple):
    """A picture in CIELAB, (B,3,H,W): as it is, and blurred before the conversion."""

    pixels: Tensor
    areas: Tensor


def srgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB (B,3,H,W) in [0,1] to CIELAB under D65: L* in 0..100, a* and b* about -100..100."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    matrix = images.new_tensor(TO_XYZ)
    white = matrix.sum(dim=1).view(1, 3, 1, 1)
    xyz = torch.einsum("ij,bjhw->bihw", matrix, linear) / white
    edge = 6 / 29
    root = torch.where(xyz > edge**3, xyz.clamp(min=1e-12) ** (1 / 3), xyz / (3 * edge**2) + 4 / 29)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def ciede2000(lab: Tensor, reference: Tensor) -> Tensor:
    """Compute the colour difference ΔE₀₀ (CIE 142-2001) of each pixel, kL = kC = kH = 1.

    Equations 2-22 of Sharma, Wu and Dalal, "The CIEDE2000 Color-Difference Formula: Implementation Notes,
    Supplementary Test Data, and Mathematical Observations", 2005. About 1 is just noticeable.

    Args:
        lab, reference: (B,3,...) CIELAB, same shape; the order of the two does not matter.
    Returns:
        (B,...), at least 0.
    """
    (l1, a1, b1), (l2, a2, b2) = lab.unbind(1), reference.unbind(1)
    chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1 + 0.5 * (1 - _saturation(chroma))
    c1, c2 = torch.hypot(stretch * a1, b1), torch.hypot(stretch * a2, b2)
    h1, h2 = _hue(stretch * a1, b1), _hue(stretch * a2, b2)
    grey = c1 * c2 == 0
    turn = h2 - h1
    far = turn.abs() > 180 + 1e-6  # opposite hues are not far, whatever their last digit says
    turn = torch.where(far, turn - 360 * turn.sign(), turn).masked_fill(grey, 0)
    total = h1 + h2
    around = torch.where(total < 360, total + 360, total - 360)
    hue = torch.where(grey, total, torch.where(far, around, total) / 2)
    lightness, c = (l1 + l2) / 2, (c1 + c2) / 2
    t = (
        1
        - 0.17 * _cos(hue - 30)
        + 0.24 * _cos(2 * hue)
        + 0.32 * _cos(3 * hue + 6)
        - 0.20 * _cos(4 * hue - 63)
    )
    middle = (lightness - 50).square()
    d_light = (l2 - l1) / (1 + 0.015 * middle / (20 + middle).sqrt())
    d_chroma = (c2 - c1) / (1 + 0.045 * c)
    d_hue = 2 * (c1 * c2).sqrt() * torch.sin(torch.deg2rad(turn / 2)) / (1 + 0.015 * c * t)
    blue = 60 * torch.exp(-((hue - 275) / 25).square())
    rotation = -2 * _saturation(c) * torch.sin(torch.deg2rad(blue))
    squares = d_light.square() + d_chroma.square() + d_hue.square() + rotation * d_chroma * d_hue
    return squares.clamp(min=0).sqrt()


def _saturation(chroma: Tensor) -> Tensor:
    """Compute sqrt(C⁷ / (C⁷ + 25⁷)), without leaving float32's range."""
    ratio = (chroma / 25) ** 7
    return (ratio / (ratio + 1)).sqrt()


def _hue(a: Tensor, b: Tensor) -> Tensor:
    """Return the hue angle in 0..360 degrees, 0 for grey."""
    return torch.rad2deg(torch.atan2(b, a)) % 360


def _cos(degrees: Tensor) -> Tensor:
    return torch.cos(degrees * (math.pi / 180))


def _both(images: Tensor) -> LabPair:
    from torchvision.transforms.functional import gaussian_blur

    taps = 2 * round(3 * AREA_SIGMA) + 1
    reach = min(taps, 2 * min(images.shape[-2:]) - 1)  # the mirrored border is no wider than the picture
    blurred = gaussian_blur(images, [reach, reach], [AREA_SIGMA, AREA_SIGMA])
    return LabPair(srgb_to_lab(images), srgb_to_lab(blurred))


def _differences(images: LabPair, references: LabPair) -> Tensor:
    return torch.stack([ciede2000(a, b).mean(dim=(1, 2)) for a, b in zip(images, references, strict=True)])


DELTA_E = Metric(
    (
        Column("delta_e", "lower", "mean CIEDE2000 of the pixels", "ΔE", 2),
        Column("delta_e_area", "lower", f"the same after a blur of σ {AREA_SIGMA:g} px on both", "ΔE", 2),
    ),
    _differences,
    _both,
)
"""Colour difference of pixels, texture and edges included, and of areas: the shift of their colour alone."""
