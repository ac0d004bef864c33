"""Put restored crops back: soft masks, tile by tile, without touching any pixel outside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..choices import PasteMode
from ..errors import ImageError
from ..options import PasteOptions, check
from ..photo_array import PhotoArray, Pixels
from .align import align, crop_bounds
from .face import CROP_SIZE, Face
from .geometry import homogeneous, inverse, plane, resize_smooth, resizing, translation, warp

TILE = 1024
"""Photos are blended in squares of this side [px], which bounds memory whatever the photo's size."""
REACH_SIDE, REACH_TOP, REACH_BOTTOM = 236.0, 240.0, 252.0
"""Where the mask ends, from the middle of the 512 crop [px]; its border at 256 so never shows. Below it goes
further, because the chin of an FFHQ crop lies low."""


@dataclass(frozen=True)
class Patch:
    """What one face adds: a picture in its own (possibly shrunk) crop space.

    Attributes:
        values: (3, s, s) float32: the change (residual mode) or the restored crop (replace mode).
        to_template: 3x3, photo px -> 512 template px; places the mask.
        to_values: 3x3, photo px -> pixel of `values`.
        bounds: left, top, right, bottom in the photo, ends exclusive, clipped to it [px].
    """

    values: Tensor
    to_template: np.ndarray
    to_values: np.ndarray
    bounds: tuple[int, int, int, int]


def paste(
    photo: Pixels | PhotoArray,
    faces: Sequence[Face],
    restored: Tensor,
    *,
    crops: Tensor | None = None,
    feather: float = 0.2,
    mode: PasteMode = "residual",
    scale: float | tuple[float, float] = 1.0,
    device: torch.device | str | None = None,
    in_place: bool = False,
) -> tuple[Pixels, Tensor | np.ndarray]:
    """Blend restored crops into a copy of the photo.

    Mode `residual` adds the difference between the restored and the original crop: what the model left alone
    stays as it is, and detail finer than the crop (a face larger than 512 px) survives. Mode `replace` covers
    the face with the restored crop. Where faces overlap, each pixel follows the face whose centre is nearest
    in units of its own size. Every pixel where the mask is zero keeps its exact value.

    Args:
        photo: (3, H, W) unit tensor, (H, W, 3) array of uint8, uint16 or float, or Pillow image.
        faces: N faces, in the coordinates of the photo they were found in.
        restored: (N, 3, S, S) unit range, aligned like `align`'s crops.
        crops: (N, 3, S, S) what `align` cut from this very photo, to save cutting them again (residual mode).
        feather: width of the soft border as a fraction of half the crop, 0.001 to 1.
        mode: "residual" or "replace".
        scale: size of `photo` over that of the photo the faces were found in (one number, or x and y).
        device: where to blend; the photo's by default.
        in_place: blend into `photo` itself where it can be written to.
    Returns:
        image: same kind, shape and type as `photo`; whole numbers are rounded once, inside the masks only.
        mask: (1, H, W) tensor beside tensors, else (H, W) array; float32: 0 outside, 1 where fully restored.
    Raises:
        OptionError: `feather` or `mode` is out of range.
        ImageError: if counts or shapes disagree.
    """
    check(PasteOptions, feather=feather, paste_mode=mode)
    _check(faces, restored, crops)
    photo = PhotoArray.of(photo)
    device = torch.device(device or photo.device)
    sx, sy = (scale, scale) if isinstance(scale, int | float) else scale
    if (sx, sy) != (1.0, 1.0):
        faces, crops = [face.scaled(sx, sy) for face in faces], None
    restored = restored.to(device=device, dtype=torch.float32)
    patches = [
        make_patch(photo, face, restored[i], None if crops is None else crops[i].to(restored), mode)
        for i, face in enumerate(faces)
    ]
    image = photo.writable(in_place)
    # NumPy's zeros take no memory where nobody writes: beside a giant photo, all but the faces.
    mask = torch.from_numpy(np.zeros((1, *photo.shape), np.float32)).to(photo.device)
    for top in range(0, photo.shape[0], TILE):
        for left in range(0, photo.shape[1], TILE):
            blend_tile(image, mask, patches, (left, top, left + TILE, top + TILE), feather, mode)
    return image.native(), image.native_mask(mask)


def make_patch(photo: PhotoArray, face: Face, restored: Tensor, crop: Tensor | None, mode: str) -> Patch:
    """Prepare one face for blending; a crop finer than the photo is low-pass filtered down to it."""
    height, width = photo.shape
    side = restored.shape[-1]
    values = restored
    if mode == "residual":
        crop = align(photo, [face], side, device=restored.device)[0] if crop is None else crop
        values = restored - crop
    to_template = homogeneous(face.matrix)
    density = np.sqrt(abs(np.linalg.det(to_template[:2, :2]))) * side / CROP_SIZE  # crop px per photo px
    small = max(1, round(side / max(density, 1.0)))
    values = resize_smooth(values, (small, small))
    to_values = resizing(small / CROP_SIZE, small / CROP_SIZE) @ to_template
    left, top, right, bottom = crop_bounds(inverse(to_template[:2]), CROP_SIZE, margin=1)
    bounds = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    return Patch(values, to_template, to_values, bounds)


def blend_tile(
    image: PhotoArray,
    mask: Tensor,
    patches: Sequence[Patch],
    tile: tuple[int, int, int, int],
    feather: float,
    mode: str,
) -> None:
    """Blend every patch that reaches `tile` and write the result, in place, where the mask is above zero."""
    cuts = [(patch, _overlap(patch.bounds, tile)) for patch in patches]
    cuts = [(patch, cut) for patch, cut in cuts if cut[0] < cut[2] and cut[1] < cut[3]]
    if not cuts:
        return
    # Only what the patches cover, so that a small face costs little.
    corners = np.array([cut for _, cut in cuts])
    (left, top), (right, bottom) = corners[:, :2].min(axis=0).tolist(), corners[:, 2:].max(axis=0).tolist()
    device = cuts[0][0].values.device
    cover, total, change = torch.zeros(5, bottom - top, right - left, device=device).split((1, 1, 3))
    for patch, cut in cuts:
        view = (slice(None), slice(cut[1] - top, cut[3] - top), slice(cut[0] - left, cut[2] - left))
        weight, share = soft_mask(patch.to_template, cut, feather, device)
        origin = translation(cut[0], cut[1])
        values = warp(
            patch.values, (patch.to_values @ origin)[:2], (cut[3] - cut[1], cut[2] - cut[0]), padding="border"
        )
        cover[view] = torch.maximum(cover[view], weight)
        total[view] += share
        change[view] += share * values
    change = cover * change / total.clamp(min=1e-30)
    area = (top, bottom, left, right)
    before = image.region(area, device)
    after = before * (1 - cover) + change if mode == "replace" else before + change
    # Float photos may hold values beyond 0..1 (HDR): only what the blend itself pushes out is cut.
    after = torch.maximum(torch.minimum(after, before.clamp(min=1)), before.clamp(max=0))
    image.write(area, after, cover[0] > 0)
    mask[:, top:bottom, left:right] = cover.to(mask)


def soft_mask(
    to_template: np.ndarray, rectangle: tuple[int, int, int, int], feather: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Evaluate one face's mask over a photo rectangle in closed form: no sampling, no seams between tiles.

    Its shape is a superellipse of exponent 4, between a circle and a square: an ellipse would cut the jaw.

    Returns:
        weight: (1, h, w), 1 in the middle, falling smoothly to exactly 0 before the crop's border.
        share: (1, h, w), zero where `weight` is; steeply higher near a centre, to settle overlaps.
    """
    left, top, right, bottom = rectangle
    middle = (CROP_SIZE - 1) / 2
    matrix = (to_template @ translation(left, top))[:2]
    matrix = (matrix - [[0, 0, middle], [0, 0, middle]]) / [[REACH_SIDE], [REACH_TOP]]
    # Superellipse |u|^4 + |v|^4 = 1, mostly with in-place steps: these planes are as large as the face.
    across, down = plane(matrix, (bottom - top, right - left), device).unbind(dim=-1)
    down = torch.maximum(down * (REACH_TOP / REACH_BOTTOM), -down)
    powers = across.square().square_().add_(down.square_().square_())
    inward = powers.sqrt_().sqrt_().neg_().add_(1).clamp_(min=0)
    near = (inward / feather).clamp_(max=1)
    weight = near * 6 - 15
    weight.mul_(near).add_(10).mul_(near).mul_(near).mul_(near).clamp_(max=1)  # rounding may exceed 1
    share = inward.square_().square_().mul_(weight)
    return weight[None], share[None]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _check(faces: Sequence[Face], restored: Tensor, crops: Tensor | None) -> None:
    if restored.dim() != 4 or restored.shape[1] != 3 or restored.shape[-1] != restored.shape[-2]:
        raise ImageError(f"restored crops have shape {tuple(restored.shape)}: expected (N, 3, S, S)")
    if len(faces) != restored.shape[0]:
        raise ImageError(
            f"got {len(faces)} faces but {restored.shape[0]} restored crops: expected one crop per face"
        )
    if crops is not None and crops.shape != restored.shape:
        raise ImageError(
            f"original crops have shape {tuple(crops.shape)}, restored ones {tuple(restored.shape)}: "
            "expected the same"
        )
