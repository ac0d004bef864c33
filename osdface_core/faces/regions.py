"""Photos as tensors or native arrays: their shape, and rectangles of them as unit-range tensors."""

from __future__ import annotations

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
    theta = torch.from_numpy(normalised(matrix, image.shape[-2:], size).astype(np.float32)).to(image.device)
    grid = F.affine_grid(theta[None], [1, image.shape[0], *size], align_corners=False)
    grid = grid.to(image.dtype)
    return F.grid_sample(image[None], grid, mode=mode, padding_mode=padding, align_corners=False)[0]


def normalised(matrix: np.ndarray, source: tuple[int, ...], target: tuple[int, ...]) -> np.ndarray:
    """Rewrite a pixel-to-pixel 2x3 matrix for `affine_grid`, whose coordinates run from -1 to 1 edge to edge."""
    (height, width), (out_height, out_width) = source[-2:], target[-2:]
    to_pixel = np.array([[out_width / 2, 0, (out_width - 1) / 2], [0, out_height / 2, (out_height - 1) / 2], [0, 0, 1]])
    from_pixel = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
    return (from_pixel @ homogeneous(matrix) @ to_pixel)[:2]


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
