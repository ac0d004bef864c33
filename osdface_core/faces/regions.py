"""Photos as tensors or native arrays: their shape, and rectangles of them as unit-range tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ImageError

Photo = Tensor | np.ndarray
"""(3, H, W) float tensor in [0, 1] on any device, or (H, W, 3) array of uint8, uint16 or float."""

FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0}
"""Array value that means 1.0 in the unit range."""


def photo_shape(photo: Photo) -> tuple[int, int]:
    """Height and width of a photo [px].

    Raises:
        ImageError: if it is not one of the two layouts, or is empty.
    """
    shape, dtype = tuple(photo.shape), photo.dtype
    if isinstance(photo, Tensor):
        good = len(shape) == 3 and shape[0] == 3 and photo.is_floating_point()
        height, width = shape[-2:] if len(shape) > 1 else (0, 0)
    else:
        good = len(shape) == 3 and shape[2] == 3 and str(dtype) in FULL_SCALE
        height, width = shape[:2] if len(shape) > 1 else (0, 0)
    if not good or height < 1 or width < 1:
        raise ImageError(
            f"photo has shape {shape} and type {dtype}: expected a (3, H, W) float tensor "
            "or an (H, W, 3) array of uint8, uint16 or float32; convert it first"
        )
    return height, width


def photo_device(photo: Photo, device: torch.device | str | None = None) -> torch.device:
    """Where to work: `device` if given, else where the photo is."""
    if device is not None:
        return torch.device(device)
    return photo.device if isinstance(photo, Tensor) else torch.device("cpu")


def read_region(
    photo: Photo, top: int, bottom: int, left: int, right: int, device: torch.device | None = None
) -> Tensor:
    """A rectangle of the photo as (3, h, w) float32, unit range (float photos may exceed it), on `device`."""
    if isinstance(photo, Tensor):
        return photo[:, top:bottom, left:right].to(device=device, dtype=torch.float32)
    part = np.ascontiguousarray(photo[top:bottom, left:right])
    scale = FULL_SCALE[str(part.dtype)]
    if part.dtype == np.uint16 or not part.flags.writeable:  # torch has few operations for uint16
        part = part.astype(np.float32)
    region = torch.from_numpy(part).to(device).permute(2, 0, 1).to(torch.float32)
    return region if scale == 1.0 else region / scale


def resize_smooth(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (C, h, w) to `size` by bicubic interpolation, low-pass filtered when it shrinks.

    The filtered kernels exist for CPU and CUDA only; elsewhere (MPS, DirectML) this one step runs on the CPU.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    halvings = int(math.log2(max(min(image.shape[-2] / size[0], image.shape[-1] / size[1]) / 2, 1)))
    if halvings:  # averaging whole pixels first is much cheaper than one wide kernel, and as good
        image = F.avg_pool2d(image[None], 2**halvings, ceil_mode=True, count_include_pad=False)[0]
    source = image if image.device.type in ("cpu", "cuda") else image.cpu()
    result = F.interpolate(source[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
    return result.to(image.device)


def warp(
    image: Tensor, matrix: np.ndarray, size: tuple[int, int], *, padding: str = "zeros", mode: str = "bicubic"
) -> Tensor:
    """Sample (C, h, w) at `matrix` @ (x, y, 1) for every output pixel (x, y).

    Args:
        matrix: (2, 3), output pixel -> input pixel, pixel centres at whole numbers.
        size: output height and width [px].
        padding: what lies beyond the border: "zeros", "border" or "reflection".
        mode: "bilinear", or "bicubic" where the device has it.
    Returns:
        (C, *size), dtype and device of `image`.
    """
    if mode == "bicubic" and image.device.type not in ("cpu", "cuda"):
        mode = "bilinear"
    height, width = image.shape[-2:]
    # grid_sample's coordinates run from -1 to 1, edge to edge.
    matrix = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1]]) @ homogeneous(matrix)
    grid = plane(matrix, size, image.device)
    return F.grid_sample(image[None], grid[None], mode=mode, padding_mode=padding, align_corners=False)[0]


def plane(matrix: np.ndarray, size: tuple[int, int], device: torch.device) -> Tensor:
    """(h, w, 2) float32: `matrix` @ (x, y, 1) for each pixel of an image of `size`."""
    across, down, origin = torch.from_numpy(np.asarray(matrix, dtype=np.float32)).to(device).unbind(dim=1)
    x = torch.arange(size[1], dtype=torch.float32, device=device)[:, None] * across + origin
    y = torch.arange(size[0], dtype=torch.float32, device=device)[:, None] * down
    return x[None] + y[:, None]


def homogeneous(matrix: np.ndarray) -> np.ndarray:
    """2x3 -> 3x3."""
    return np.vstack((np.asarray(matrix, dtype=np.float64), (0.0, 0.0, 1.0)))


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a 2x3 affine map, as 2x3."""
    return np.linalg.inv(homogeneous(matrix))[:2]


def translation(x: float, y: float) -> np.ndarray:
    """3x3 shift."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def resizing(sx: float, sy: float) -> np.ndarray:
    """3x3 map of pixel centres when an image is resized by `sx`, `sy`: edges, not centres, scale linearly."""
    return np.array([[sx, 0.0, (sx - 1) / 2], [0.0, sy, (sy - 1) / 2], [0.0, 0.0, 1.0]])
