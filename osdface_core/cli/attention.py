"""`osdface restore --attention-maps`: where each token of the prompt is looked at, laid over the face."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import ConfigError, OptionError
from ..images import from_unit
from ..models.attention import recorded_attention
from ..options import parse_faces
from ..pipeline import FacePipeline

PANEL = 320  # [px] side of one face in the picture
COLUMNS = 4
DEFAULT_TOKENS = "0-6"


def parse_tokens(text: str) -> list[int]:
    """Parse numbers of tokens such as "0,12,40" or "0-7", counted from 0, the nearest to its code first.

    Raises:
        ConfigError: no numbers.
    """
    try:
        numbers = parse_faces(text)
    except OptionError:
        numbers = None
    if numbers is None:
        raise ConfigError(f"--tokens {text}: expected numbers such as 0,12,40 or 0-7")
    return numbers


def check_tokens(numbers: Sequence[int], count: int) -> None:
    """Refuse numbers of tokens that a prompt of `count` tokens does not have. Raises ConfigError."""
    if beyond := [number for number in numbers if number >= count]:
        raise ConfigError(f"--tokens {beyond[0]}: the prompt has {count} tokens, 0 to {count - 1}")


@torch.inference_mode()
def attention_maps(
    pipeline: FacePipeline, faces: Tensor, timestep: int | None = None, prompt: Tensor | None = None
) -> Tensor:
    """Compute where the one step's cross-attention looks at each token, averaged over heads and layers.

    Args:
        pipeline: of the engine "eager"; it is left as it was.
        faces: (N, 3, H, W) in [0, 1].
        timestep, prompt: as for `restore`.
    Returns:
        (N, tokens, H/8, W/8) float32 on the CPU; at each place the tokens sum to 1.
    Raises:
        ConfigError: another engine, or a model without cross-attention.
    """
    unet = getattr(pipeline.backbone.predictor, "unet", None)
    if pipeline.engine.name != "eager" or unet is None:
        raise ConfigError("attention maps need the engine eager: add --engine eager")
    found = []
    for face in faces[:, None]:  # `split` makes a part of no faces, too
        signed = face.to(pipeline.device, torch.float32) * 2.0 - 1.0
        latent = pipeline.one_step.encode(signed)
        with recorded_attention(unet) as record:
            own = pipeline.encode_prompt(face) if prompt is None else prompt[:1].to(pipeline.device)
            pipeline.one_step.denoise(latent, own, timestep)
        found.append(record.maps(*latent.shape[-2:]).cpu())
    return torch.cat(found) if found else torch.empty(0)


def attention_picture(face: Tensor, maps: Tensor, tokens: Sequence[int]) -> Image.Image:
    """Draw the face, and beside it once per token with the token's map as heat over it.

    Each map is stretched from its least to its greatest value, which stand in its corner in multiples of an
    even share (1 / number of tokens).

    Args:
        face: (3, H, W) in [0, 1].
        maps: (tokens, h, w).
    Raises:
        ConfigError: a token that the prompt does not have.
    """
    check_tokens(tokens, len(maps))
    height = round(PANEL * face.shape[-2] / face.shape[-1])
    resize: dict[str, Any] = {"size": (height, PANEL), "mode": "bilinear", "align_corners": False}
    small = F.interpolate(face[None].float().cpu(), antialias=True, **resize)[0]
    grey = small.mean(dim=0)
    columns = min(COLUMNS, len(tokens) + 1)
    canvas = Image.new("RGB", (columns * PANEL, math.ceil((len(tokens) + 1) / columns) * height))
    canvas.paste(Image.fromarray(from_unit(small, np.uint8)))
    for place, number in enumerate(tokens, 1):
        map_ = maps[number]
        low, high = map_.aminmax()
        heat = F.interpolate(map_[None, None], **resize)[0, 0]
        heat = (heat - low) / (high - low).clamp(min=1e-12)
        colours = torch.stack([3 * heat, 3 * heat - 1, 3 * heat - 2]).clamp(0, 1)  # black, red, yellow, white
        panel = Image.fromarray(from_unit(0.5 * grey + 0.5 * colours, np.uint8))
        label = f"token {number}: {float(low) * len(maps):.2f} to {float(high) * len(maps):.2f}"
        ImageDraw.Draw(panel).text((8, 6), label, fill="white", stroke_width=2, stroke_fill="black")
        canvas.paste(panel, (place % columns * PANEL, place // columns * height))
    return canvas
