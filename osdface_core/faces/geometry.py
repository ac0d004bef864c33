"""Resize and warp pictures, and the 2x3 and 3x3 maps between pixel coordinates."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Compute `matrix` @ (x, y, 1) for each pixel of an image of `size`: (h, w, 2) float32."""
    across, down, origin = torch.from_numpy(np.asarray(matrix, dtype=np.float32)).to(device).unbind(dim=1)
    x = torch.arange(size[1], dtype=torch.float32, device=device)[:, None] * across + origin
    y = torch.arange(size[0], dtype=torch.float32, device=device)[:, None] * down
    return x[None] + y[:, None]


def homogeneous(matrix: np.ndarray) -> np.ndarray:
    """Extend a 2x3 affine map to 3x3."""
    return np.vstack((np.asarray(matrix, dtype=np.float64), (0.0, 0.0, 1.0)))


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Invert a 2x3 affine map, as 2x3."""
    return np.linalg.inv(homogeneous(matrix))[:2]


def translation(x: float, y: float) -> np.ndarray:
    """Build the 3x3 map of a shift."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def resizing(sx: float, sy: float) -> np.ndarray:
    """Build the 3x3 map of pixel centres under resizing by `sx`, `sy`: edges, not centres, scale linearly."""
    return np.array([[sx, 0.0, (sx - 1) / 2], [0.0, sy, (sy - 1) / 2], [0.0, 0.0, 1.0]])
