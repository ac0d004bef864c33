"""LoRAs in other programs' styles of keys, and of factors that do not fit."""

from __future__ import annotations

import math
import random
import re

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
FACTOR = re.compile(
    r"(?P<front>(?:lora\.)?(?:unet\.)?)(?P<layer>.+?)\.(?P<kind>lora_A|lora_B|lora\.down|lora\.up)\.weight"
)
STYLES = {
    "peft": "base_model.model.{layer}.lora_{ab}.default.weight",
    "diffusers": "unet.{layer}.lora.{way}.weight",
    "newer": "unet.{layer}.lora_{ab}.weight",
    "kohya": "lora_unet_{flat}.lora_{way}.weight",
    "processor": "unet.{layer}.processor.lora_linear_layer.{way}.weight",
    "text": "text_encoder.{layer}.lora_{ab}.weight",
}


def restyled(tensors: Tensors, draw: random.Random) -> Tensors:
    """Write the factors of all layers, or of one, in another program's style of keys."""
    style = draw.choice(list(STYLES))
    some = draw.random() < 0.7
    changed: Tensors = {}
    for key, value in tensors.items():
        match = FACTOR.fullmatch(key)
        if match is None or (not some and draw.random() < 0.9):
            changed[key] = value
            continue
        down = match["kind"] in ("lora_A", "lora.down")
        layer, side = match["layer"], {"ab": "A" if down else "B", "way": "down" if down else "up"}
        front = "lora." if match["front"].startswith("lora.") else ""
        new = front + STYLES[style].format(layer=layer, flat=layer.replace(".", "_"), **side)
        changed[new] = value
        if style == "kohya" and draw.random() < 0.8:  # else its alpha is missing
            changed[f"{front}lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(4.0)
        if draw.random() < 0.02:
            changed[key] = value  # both styles
    return changed


def changed_lora(tensors: Tensors, draw: random.Random) -> Tensors:
    """Change the factors of one layer or all: transposed, exchanged, of another rank or kernel, half gone."""
    factors = [key for key in tensors if FACTOR.fullmatch(key)]
    for key in factors if draw.random() < 0.3 else [draw.choice(factors)]:
        value, way = tensors[key], draw.choice("tsrkndmz")
        partner = re.sub("lora_A|lora_B", lambda m: {"lora_A": "lora_B", "lora_B": "lora_A"}[m[0]], key)
        if way == "t":
            tensors[key] = value.transpose(0, 1)
        elif way == "s" and partner in tensors:
            tensors[key], tensors[partner] = tensors[partner], value
        elif way == "r":
            tensors[key] = torch.cat((value, value), dim=draw.choice((0, 1)))
        elif way == "k":
            tensors[key] = value.flatten(1) if value.ndim > 2 else value[..., None, None]
        elif way == "n":
            tensors[key] = torch.full_like(value, math.nan)
        elif way == "d":
            tensors.pop(key)
        elif way == "m":
            tensors[key.rsplit(".lora", 1)[0] + ".lora_magnitude_vector"] = torch.ones(4)
        else:
            tensors[key] = value[:0]
    return tensors
