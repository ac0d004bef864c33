"""Enlarge a photo before its faces are pasted: Lanczos, or a super-resolution model through spandrel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import CheckpointError, ImageError
from .faces.regions import FULL_SCALE, Photo, photo_shape
from .options import PasteOptions, check

TILE, MARGIN = 512, 16  # [px] of the input; the margin hides the tiles' borders
LARGEST = 2**31 // 4  # [px] of the result, a third of what 12k x 9k times 5 would be


def enlarge(
    photo: Photo, factor: float, model: str | Path | None, device: torch.device
) -> tuple[Photo, tuple[float, float]]:
    """Resize a photo by `factor`; its kind and depth stay.

    Returns:
        the photo (itself at factor 1) and the exact ratios of the new width and height to the old ones.
    Raises:
        OptionError: factor out of range.
        ImageError: a result too large to hold.
        CheckpointError: the model file cannot be read, or spandrel is not installed.
    """
    check(PasteOptions, upscale=factor)
    height, width = photo_shape(photo)
    size = (round(height * factor), round(width * factor))
    if size == (height, width):
        return photo, (1.0, 1.0)
    if size[0] * size[1] > LARGEST:
        raise ImageError(f"{width}x{height} times {factor} is too large to hold; use a smaller `upscale`")
    ratio = (size[1] / width, size[0] / height)
    if model is not None:
        photo = _run_model(photo, _load(model, device), device)
    return _lanczos(photo, size), ratio


def _lanczos(photo: Photo, size: tuple[int, int]) -> Photo:
    """Channel by channel in float, so that 16-bit and float photos keep their depth."""
    if photo_shape(photo) == size:
        return photo
    if isinstance(photo, Tensor):
        planes = photo.detach().cpu().float().numpy()
        result = np.stack([resize_plane(plane, size) for plane in planes])
        return torch.from_numpy(result).clamp(0.0, 1.0).to(photo)
    full = FULL_SCALE[str(photo.dtype)]
    if photo.dtype == np.uint8:
        return np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.LANCZOS))
    result = np.stack([resize_plane(photo[..., c].astype(np.float32), size) for c in range(3)], axis=-1)
    return result.astype(photo.dtype) if full == 1.0 else result.round().clip(0, full).astype(photo.dtype)


def resize_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One channel (H, W) to `size`, float32 in the plane's own range; Lanczos may overshoot it."""
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
def _run_model(photo: Photo, model: Any, device: torch.device) -> Photo:
    """Tile by tile into a new photo of the model's scale."""
    height, width = photo_shape(photo)
    scale = int(model.scale)
    tensor = isinstance(photo, Tensor)
    out: Any
    if isinstance(photo, Tensor):
        out = photo.new_empty(3, height * scale, width * scale)
    else:
        out = np.empty((height * scale, width * scale, 3), photo.dtype)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            outer = (
                max(top - MARGIN, 0),
                min(top + TILE + MARGIN, height),
                max(left - MARGIN, 0),
                min(left + TILE + MARGIN, width),
            )
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            result = model(_region(photo, outer, device))[0].clamp(0.0, 1.0)
            rows = slice((top - outer[0]) * scale, (bottom - outer[0]) * scale)
            columns = slice((left - outer[2]) * scale, (right - outer[2]) * scale)
            part, area = (
                result[:, rows, columns],
                (slice(top * scale, bottom * scale), slice(left * scale, right * scale)),
            )
            if tensor:
                out[(slice(None), *area)] = part.to(out)
            else:
                full = FULL_SCALE[str(out.dtype)]
                pixels = (part.permute(1, 2, 0).float() * full).cpu().numpy()
                out[area] = pixels if full == 1.0 else pixels.round()
    return out


def _region(photo: Photo, area: tuple[int, int, int, int], device: torch.device) -> Tensor:
    from .faces.regions import read_region

    return read_region(photo, *area, device)[None]
