"""See what a degradation does: a grid of faces by profiles."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from osdface_core.images import from_unit

from ..seeds import mix
from .degrade import degrade
from .degrade_profiles import Degradation, named_profile

_HEADER = 22  # px


def preview_grid(
    hq: Tensor,
    profiles: str | Degradation | Sequence[str | Degradation],
    seed: int = 0,
    *,
    repeats: int = 1,
    side: int = 256,
) -> Image.Image:
    """Draw one row per clean face: the face, then what each profile makes of it.

    Args:
        hq: (B, 3, H, W) unit float.
        profiles: one or several, by name or as objects.
        seed: of the draws; row and repeat add to it, so the columns of a row differ by profile only.
        repeats: pictures per profile and face.
        side: shown size of a face [px]; degradation happens at the full size.
    Returns: an RGB picture, (side·(1 + profiles·repeats)) wide.
    Raises:
        ConfigError: for an unknown profile.
    """
    chosen = [profiles] if isinstance(profiles, str | Degradation) else list(profiles)
    columns = [("original", hq)]
    for profile in map(named_profile, chosen):
        for repeat in range(repeats):
            seeds = [mix(seed, row, repeat) for row in range(len(hq))]
            columns.append((profile.name, degrade(hq, profile, seeds)))
    sheet = Image.new("RGB", (side * len(columns), side * len(hq) + _HEADER), "white")
    text = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for position, (name, faces) in enumerate(columns):
        text.text((position * side + 4, 2), name, "black", font)
        for row, face in enumerate(_thumbnails(faces, side)):
            sheet.paste(face, (position * side, row * side + _HEADER))
    return sheet


def _thumbnails(faces: Tensor, side: int) -> list[Image.Image]:
    small = F.interpolate(faces.cpu().float(), size=(side, side), mode="bicubic", antialias=True)
    return [Image.fromarray(from_unit(face, np.uint8)) for face in small]
