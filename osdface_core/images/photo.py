"""A photo in memory: pixels, what its file says about it, and the way to and from unit-range tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError
from ..photo_array import FULL_SCALE


@dataclass(frozen=True)
class Photo:
    """A photo and what its file says about it.

    Attributes:
        pixels: (H, W, 3) uint8, uint16 or float32, RGB, upright (the file's orientation is applied).
        alpha: (H, W) of the same type, or None.
        grey: the file has one colour channel; the three channels of `pixels` are equal.
        icc: colour profile, or None.
        exif: EXIF block, its orientation reset to upright, or None.
        format: "PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", or another name of Pillow's that is only read.
        xmp: XMP packet, or None.
        dpi: resolution in print (x, y), or None.
        text: text chunks of a PNG (image generators keep their settings there).
        lossless: whether the file keeps pixels exactly.
        premultiplied: colours are multiplied by alpha (TIFF only).
        photoshop: Photoshop's image resources, the IPTC record among them (JPEG, TIFF, PNG), or None.
        comments: comments of a JPEG or GIF.
        chunks: PNG chunks, kind and body, that say what the samples mean (gAMA, cHRM, sRGB, cICP, mDCV, cLLI)
            or that the PNG specification calls safe to copy.
        notes: what of the file is left out or converted, a line each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    format: str = "PNG"
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    lossless: bool = True
    premultiplied: bool = False
    photoshop: bytes | None = None
    comments: tuple[bytes, ...] = ()
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    notes: tuple[str, ...] = ()


def to_unit(array: np.ndarray) -> Tensor:
    """Convert an array to a tensor in the unit range.

    Args:
        array: (H, W, 3) or (H, W), uint8, uint16 or float (floats are taken as they are).
    Returns:
        (3, H, W) float32; a grey picture is repeated.
    Raises:
        ImageError: for another type or shape.
    """
    scale = FULL_SCALE.get(str(array.dtype))
    if scale is None or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ImageError(
            f"picture has shape {array.shape} and type {array.dtype}: "
            "expected (H, W, 3) uint8, uint16 or float32"
        )
    planes = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
    tensor = torch.from_numpy(np.array(planes.transpose(2, 0, 1), dtype=np.float32, order="C"))
    return tensor if scale == 1.0 else tensor.div_(scale)


def from_unit(image: Tensor, dtype: Any) -> np.ndarray:
    """Convert a tensor in the unit range to an array: rounded to the nearest step, cut beyond the range.

    Args:
        image: (3, H, W) float.
        dtype: uint8, uint16 or float32 (floats are neither rounded nor cut).
    Returns:
        (H, W, 3).
    """
    kind = np.dtype(dtype)
    scale = FULL_SCALE.get(str(kind))
    if scale is None or image.dim() != 3:
        raise ImageError(
            f"cannot make a {kind} picture of shape {tuple(image.shape)}: "
            "expected (3, H, W) and uint8, uint16 or float32"
        )
    values = image.detach().float().permute(1, 2, 0).cpu()
    if scale == 1.0:
        return np.ascontiguousarray(values.numpy(), dtype=kind)
    return np.ascontiguousarray((values.clamp(0, 1) * scale).round_().numpy().astype(kind))
