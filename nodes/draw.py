"""Pictures for people: numbered boxes on photos, labels and layouts of before/after images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..osdface_core.faces.draw import Box, draw_boxes


def numbered_boxes(
    image: Tensor, boxes: Sequence[Box], captions: Sequence[str], colours: Sequence[int | None]
) -> Tensor:
    """Draw boxes with captions on one (3, H, W) image in [0, 1]; returns a new image.

    Args:
        boxes: x0, y0, x1, y1 [px]; may reach over the border.
        captions: one short text per box, drawn on a patch of the box's colour.
        colours: index into `COLOURS` of the core's `faces/draw.py` per box; None draws in grey.
    """
    if not boxes:
        return image.clone()
    picture = to_picture(image)
    draw_boxes(picture, boxes, captions, colours)
    return to_tensor(picture).to(image.device)


def with_label(image: Tensor, caption: str) -> Tensor:
    """Write a caption into the lower left corner of (3 or 4, H, W), opaque there; an empty one: unchanged."""
    if not caption:
        return image
    picture = to_picture(image[:3])
    draw = ImageDraw.Draw(picture, "RGBA")
    font = ImageFont.load_default(size=max(12, max(picture.size) // 40))
    pad = max(4, max(picture.size) // 120)
    place = (pad * 2, picture.height - pad * 2)
    patch = draw.textbbox(place, caption, font=font, anchor="ld")
    draw.rectangle((patch[0] - pad, patch[1] - pad, patch[2] + pad, patch[3] + pad), fill=(0, 0, 0, 150))
    draw.text(place, caption, fill=(255, 255, 255, 255), font=font, anchor="ld")
    written = to_tensor(picture).to(image.device)
    if image.shape[0] == 3:
        return written
    alpha = image[3:].clone()
    alpha[:, max(0, int(patch[1]) - pad) :, : int(patch[2]) + pad] = 1.0
    return torch.cat((written, alpha))


def compare(before: Tensor, after: Tensor, layout: str, position: float, gap: int) -> Tensor:
    """Lay two (C, H, W) images of one size out.

    Args:
        layout: `side_by_side`, `stacked`, or `split`: one picture, before on the left of `position`.
        position: where a split picture divides, 0 (all after) to 1 (all before).
        gap: white gap, or width of the dividing line [px].
    """
    if layout == "split":
        width = before.shape[-1]
        cut = round(position * width)
        out = torch.cat((before[..., :cut], after[..., cut:]), dim=-1)
        out[..., max(0, cut - gap // 2) : cut - gap // 2 + gap] = 1.0
        return out
    axis = -1 if layout == "side_by_side" else -2
    shape = list(before.shape)
    shape[axis] = gap
    return torch.cat((before, before.new_ones(shape), after), dim=axis)


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, C, H, W), antialiased and within [0, 1]; return the same tensor if it fits."""
    if images.shape[-2:] == (height, width) or images.shape[0] == 0:
        return images if images.shape[0] else images.new_zeros(0, images.shape[1], height, width)
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True).clamp(0.0, 1.0)


def to_picture(image: Tensor) -> Image.Image:
    pixels = (image.detach().float().clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(pixels)


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0).permute(2, 0, 1)
