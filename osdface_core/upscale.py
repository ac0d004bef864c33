"""Enlarge a photo before its faces are pasted: Lanczos, or a super-resolution model through spandrel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .errors import CheckpointError, ImageError
from .options import PasteOptions, check
from .photo_array import PhotoArray

TILE, MARGIN = 512, 16  # [px] of the input; the margin hides the tiles' borders
LARGEST = 2**31 // 4  # [px] of the result, a third of what 12k x 9k times 5 would be


def enlarge(
    photo: PhotoArray, factor: float, model: str | Path | None, device: torch.device
) -> tuple[PhotoArray, tuple[float, float]]:
    """Resize a photo by `factor`; its kind and depth stay.

    Returns:
        the photo (itself at factor 1) and the exact ratios of the new width and height to the old ones.
    Raises:
        OptionError: factor out of range.
        ImageError: a result too large to hold.
        CheckpointError: the model file cannot be read, or spandrel is not installed.
    """
    check(PasteOptions, upscale=factor)
    height, width = photo.shape
    size = (round(height * factor), round(width * factor))
    if size == (height, width):
        return photo, (1.0, 1.0)
    if size[0] * size[1] > LARGEST:
        raise ImageError(f"{width}x{height} times {factor} is too large to hold; use a smaller `upscale`")
    ratio = (size[1] / width, size[0] / height)
    if model is not None:
        photo = _run_model(photo, _load(model, device), device)
    return _lanczos(photo, size), ratio


def _lanczos(photo: PhotoArray, size: tuple[int, int]) -> PhotoArray:
    """Resize 8 bits at once, and other depths channel by channel in float, so that they keep their depth."""
    if photo.shape == size:
        return photo
    picture = photo.pillow()
    if picture is None:
        return photo.with_planes(np.stack([resize_plane(plane, size) for plane in photo.planes()]))
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return photo.with_planes(resized.transpose(2, 0, 1))


def resize_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one channel (H, W) to `size`, float32 in the plane's own range; Lanczos may overshoot it."""
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _load(path: str | Path, device: torch.device) -> Any:
    try:
        from spandrel import ModelLoader
    except ImportError as error:
        raise CheckpointError("`upscale_model` needs spandrel: pip install 'osdface[upscale]'") from error
    if not Path(path).is_file():
        raise CheckpointError(f"no upscale model at {path}")
    try:
        descriptor = ModelLoader(device=device).load_from_file(path)
    except Exception as error:  # spandrel raises many kinds for unknown or damaged files
        raise CheckpointError(
            f"{Path(path).name} is no super-resolution model that spandrel knows ({error})"
        ) from error
    return descriptor.eval()


@torch.inference_mode()
def _run_model(photo: PhotoArray, model: Any, device: torch.device) -> PhotoArray:
    """Tile by tile into a new photo of the model's scale."""
    (height, width), scale = photo.shape, int(model.scale)
    result = photo.empty((height * scale, width * scale))
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            above, before = max(top - MARGIN, 0), max(left - MARGIN, 0)
            outer = (above, min(bottom + MARGIN, height), before, min(right + MARGIN, width))
            tile = model(photo.region(outer, device)[None])[0].clamp(0.0, 1.0)
            rows = slice((top - above) * scale, (bottom - above) * scale)
            columns = slice((left - before) * scale, (right - before) * scale)
            area = (top * scale, bottom * scale, left * scale, right * scale)
            result.write(area, tile[:, rows, columns])
    return result
