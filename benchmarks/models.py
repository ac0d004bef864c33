"""What is timed: our pipeline, and a plain one (or the released code) on the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from osdface_core.choices import EngineName, Posterior
from osdface_core.config import OSDFaceConfig
from osdface_core.loading import load_model
from osdface_core.models.backbone import Backbone
from osdface_core.models.codebook import squared_distances
from osdface_core.models.sd21 import random_base
from osdface_core.models.vre import VRE, Projection, PromptEncoder
from osdface_core.one_step import OneStepRestorer, trust
from osdface_core.pipeline import FacePipeline

from .reference import prompt_side

STAGES = ("vre", "projection", "encode", "unet", "decode")
Mark = Callable[[str], None]


@dataclass(frozen=True)
class Parts:
    """A model, float32, in the default memory layout."""

    config: OSDFaceConfig
    prompt_encoder: PromptEncoder
    backbone: Backbone
    device: torch.device


@dataclass(frozen=True)
class Plain:
    """The pipeline to compare with: eager float32, one face at a time.

    Attributes:
        name: what it is, in a line.
        prompt_side: (1, 3, H, W) signed to (1, 77, D) codes.
    """

    name: str
    parts: Parts
    prompt_side: Callable[[Tensor], Tensor]

    def __call__(self, faces: Tensor, mark: Mark, posterior: Posterior = "sample") -> Tensor:
        """Restore (1, 3, H, W) in [0, 1] as the released code does, which samples the latent."""
        step = OneStepRestorer(self.parts.config, self.parts.backbone)
        return by_stages(step, self.prompt_side, self.parts.prompt_encoder.projection, faces, mark, posterior)


@torch.inference_mode()
def by_stages(
    step: OneStepRestorer,
    vre: Callable[[Tensor], Any],
    project: Callable[[Any], Tensor],
    faces: Tensor,
    mark: Mark,
    posterior: Posterior = "mode",
) -> Tensor:
    """Restore (B, 3, H, W) in [0, 1], one stage after the other; call `mark(stage)` after each.

    Args:
        vre: signed faces to tokens or codes.
        project: what `vre` returns to the prompt.
    """
    signed = faces * 2.0 - 1.0
    seen = vre(signed)
    mark("vre")
    prompt = project(seen)
    mark("projection")
    latent = step.encode(signed, posterior)
    mark("encode")
    restored = step.denoise(latent, prompt)
    mark("unet")
    kept = trust(step.config.codec, restored - latent)
    out = step.decode(restored, signed, kept).clamp(-1.0, 1.0) * 0.5 + 0.5
    mark("decode")
    return out


def full_size(device: torch.device, dtype: torch.dtype = torch.float32) -> Parts:
    """Build the released sizes with random weights on the device itself: no file, no copy, finite results.

    Args:
        dtype: of codec and UNet.
    """
    config = OSDFaceConfig(name="full-size, random weights")
    with torch.device("meta"):
        prompt_encoder = PromptEncoder(
            VRE(config.vre), Projection(config.vre.z_channels, config.projection)
        ).eval()
        backbone = random_base()
    for seed, module in enumerate((prompt_encoder, *_modules(backbone))):
        (module if module is prompt_encoder else module.to(dtype)).to_empty(device=device)
        fill(module, seed)
    return Parts(config, prompt_encoder, backbone, device)


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> None:
    """Draw weights N(0, 1/fan-in), norms 1, biases 0: activations keep their size, also in float16."""
    for name, tensor in module.named_parameters():
        if tensor.is_meta:
            continue
        if tensor.ndim < 2:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        generator = torch.Generator(tensor.device).manual_seed(1000 * seed + tensor.numel() % 997)
        tensor.normal_(0.0, 1.0 / math.sqrt(tensor[0].numel()), generator=generator)
    module.requires_grad_(False)


def from_file(source: str | Path, base: str | Path | None, device: torch.device) -> Parts:
    """Load a checkpoint or released folder; a LoRA is merged for both pipelines. Raises CheckpointError."""
    loaded = load_model(source, base=base)
    for part in _modules(loaded.backbone):
        part.to(device).eval()
    return Parts(loaded.config, loaded.prompt_encoder.to(device).eval(), loaded.backbone, device)


def plain(parts: Parts, reference: Path | None) -> Plain:
    """Choose the baseline. Raises ConfigError when `reference` is no usable checkout."""
    vre = parts.prompt_encoder.vre
    if reference is None:
        return Plain("plain float32 eager pipeline", parts, lambda signed: plain_codes(vre, signed))
    codes = prompt_side(reference, vre, parts.device)
    return Plain(f"released inference code in {reference.name}", parts, codes)


def plain_codes(vre: VRE, signed: Tensor) -> Tensor:
    """Find a face's codes without our care for precision or waiting: encode, then walk the positions."""
    features = vre.features(signed)
    codebook = vre.quantize.embedding.weight
    distance, nearest = squared_distances(features, codebook).min(dim=-1)
    rows = torch.zeros(len(features), vre.cfg.tokens, codebook.shape[1], device=features.device)
    for i in range(len(features)):
        ranked = nearest[i, distance[i].argsort(stable=True)].tolist()
        first = list(dict.fromkeys(ranked))[: vre.cfg.tokens]
        rows[i, : len(first)] = codebook[first]
    return rows


def ours(parts: Parts, dtype: torch.dtype, engine: EngineName) -> FacePipeline:
    """Build our pipeline on these very weights: a baseline needs its own."""
    pipeline = FacePipeline(
        parts.config, parts.prompt_encoder, parts.backbone, device=parts.device, dtype=dtype
    )
    pipeline.use_engine(engine)
    return pipeline


def _modules(backbone: Backbone) -> tuple[nn.Module, nn.Module]:
    return cast(nn.Module, backbone.codec), cast(nn.Module, backbone.predictor)


def random_faces(count: int, side: int, device: torch.device) -> Tensor:
    """Draw (count, 3, side, side) in [0, 1]: smooth pictures; timing does not depend on their content."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 3, 16, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return smooth.clamp(0.0, 1.0).to(device)
