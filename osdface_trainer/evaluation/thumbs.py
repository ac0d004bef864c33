"""Small JPEG copies of images for the gallery."""

import io

import torch
from PIL import Image
from torch import Tensor

THUMB = 384
"""[px] longest side of an embedded picture: large enough to see skin and eyes, small enough to mail the
page.
"""
QUALITY = 85


def to_picture(image: Tensor) -> Image.Image:
    """Convert (3,H,W) float in [0,1] -> 8-bit RGB picture, rounded."""
    pixels = (
        (image.detach().float().clamp(0, 1) * 255.0).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    )
    return Image.fromarray(pixels)


def thumbnail(image: Tensor, side: int = THUMB) -> bytes:
    """Encode (3,H,W) float in [0,1] -> JPEG of at most `side` px."""
    picture = to_picture(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
