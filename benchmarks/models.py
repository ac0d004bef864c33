"""What is timed: our pipeline, and a plain one (or the released code) on the same weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from osdface_core.config import OSDFaceConfig
from osdface_core.errors import ConfigError
from osdface_core.loading import load_model
from osdface_core.models.backbone import Backbone, KLCodec, UNetPredictor
from osdface_core.models.codebook import squared_distances
from osdface_core.models.vre import VRE, Projection, PromptEncoder
from osdface_core.one_step import OneStepRestorer
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

    @torch.inference_mode()
    def __call__(self, faces: Tensor, mark: Mark, posterior: Any = "sample") -> Tensor:
        """(1, 3, H, W) in [0, 1] to the same, restored; `mark(stage)` after each stage.

        The order of the released code: codes, projection, sampled latent, noise and Eq. 2, decode.
        """
        step = OneStepRestorer(self.parts.config, self.parts.backbone)
        signed = faces * 2.0 - 1.0
        codes = self.prompt_side(signed)
        mark("vre")
        prompt = self.parts.prompt_encoder.projection(codes)
        mark("projection")
        latent = step.encode(signed, posterior)
        mark("encode")
        restored = step.denoise(latent, prompt)
        mark("unet")
        out = step.decode(restored, signed).clamp(-1.0, 1.0) * 0.5 + 0.5
        mark("decode")
        return out


def full_size(device: torch.device, dtype: torch.dtype = torch.float32) -> Parts:
    """The released sizes with random weights, made on the device itself: no file, no copy, finite results.

    Args:
        dtype: of codec and UNet.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    config = OSDFaceConfig(name="full-size, random weights")
    with torch.device("meta"):
        vre, projection = VRE(config.vre), Projection(config.vre.z_channels, config.projection)
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),  # type: ignore[arg-type]
            cross_attention_dim=config.projection.out,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            latent_channels=4,
            sample_size=512,
            block_out_channels=(128, 256, 512, 512),  # type: ignore[arg-type]
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,  # type: ignore[arg-type]
            up_block_types=("UpDecoderBlock2D",) * 4,  # type: ignore[arg-type]
            scaling_factor=config.codec.scaling_factor,
        )
    for part in (unet, vae):
        nn.Module.to(cast(nn.Module, part), dtype)
    for seed, module in enumerate((vre, projection, unet, vae)):
        cast(nn.Module, module).to_empty(device=device)
        fill(cast(nn.Module, module), seed)
    backbone = Backbone(
        KLCodec(cast(nn.Module, vae), config.codec.scaling_factor), UNetPredictor(cast(nn.Module, unet))
    )
    return Parts(config, PromptEncoder(vre, projection).eval(), _ready(backbone, device, dtype), device)


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> None:
    """Weights N(0, 1/fan-in), norms 1, biases 0: activations keep their size, also in float16."""
    for name, tensor in module.named_parameters():
        if tensor.is_meta:
            continue
        if tensor.ndim < 2:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        generator = torch.Generator(tensor.device).manual_seed(1000 * seed + tensor.numel() % 997)
        tensor.normal_(0.0, 1.0 / math.sqrt(tensor[0].numel()), generator=generator)
    module.requires_grad_(False)


def from_file(source: str | Path, base: str | None, device: torch.device) -> Parts:
    """A checkpoint or released folder; a LoRA is merged for both pipelines. Raises CheckpointError."""
    loaded = load_model(source, base=base)
    prompt_encoder = loaded.prompt_encoder.to(device).eval()
    return Parts(loaded.config, prompt_encoder, _ready(loaded.backbone, device), device)


def with_taesd(parts: Parts, folder: str) -> Parts:
    """The same model with TAESD from `folder` as its codec.

    Raises:
        ConfigError: the model has an autoencoder of its own.
        CheckpointError: a file is missing or does not fit.
    """
    from osdface_core.models.tiny_codec import taesd

    if not isinstance(parts.backbone.codec, KLCodec):
        raise ConfigError("--codec-dir is for models on Stable Diffusion's autoencoder; leave it out")
    codec = taesd(folder).to(parts.device).eval()
    return replace(parts, backbone=Backbone(codec, parts.backbone.predictor))


def _ready(backbone: Backbone, device: torch.device, dtype: torch.dtype = torch.float32) -> Backbone:
    for part in (backbone.codec, backbone.predictor):
        cast(nn.Module, part).to(device=device, dtype=dtype).eval()
    return backbone


def plain(parts: Parts, reference: Path | None) -> Plain:
    """The baseline. Raises ConfigError when `reference` is no usable checkout."""
    vre = parts.prompt_encoder.vre
    if reference is None:
        return Plain("plain float32 eager pipeline", parts, lambda signed: plain_codes(vre, signed))
    codes = prompt_side(reference, vre, parts.device)
    return Plain(f"released inference code in {reference.name}", parts, codes)


def plain_codes(vre: VRE, signed: Tensor) -> Tensor:
    """The codes of a face without our care for precision or waiting: encode, then walk the positions."""
    features = vre.features(signed)
    codebook = vre.quantize.embedding.weight
    distance, nearest = squared_distances(features, codebook).min(dim=-1)
    rows = torch.zeros(len(features), vre.cfg.tokens, codebook.shape[1], device=features.device)
    for i in range(len(features)):
        ranked = nearest[i, distance[i].argsort(stable=True)].tolist()
        first = list(dict.fromkeys(ranked))[: vre.cfg.tokens]
        rows[i, : len(first)] = codebook[first]
    return rows


def whole(parts: Parts, dtype: torch.dtype) -> FacePipeline:
    """Our pipeline on these very weights, where nothing is compared with."""
    return FacePipeline(parts.config, parts.prompt_encoder, parts.backbone, device=parts.device, dtype=dtype)


def ours(parts: Parts, dtype: torch.dtype) -> tuple[FacePipeline, int]:
    """Our pipeline on its own copy of the weights, and the bytes that the device held before it (CUDA)."""
    before = torch.cuda.memory_allocated(parts.device) if parts.device.type == "cuda" else 0
    codec, predictor = (_cast(part, dtype) for part in (parts.backbone.codec, parts.backbone.predictor))
    pipeline = FacePipeline(
        parts.config,
        copy.deepcopy(parts.prompt_encoder),
        Backbone(codec, predictor),
        device=parts.device,
        dtype=dtype,
    )
    return pipeline, before


def _cast(part: Any, dtype: torch.dtype) -> Any:
    """A copy in another precision that never holds a second float32 one."""
    memo = {id(p): nn.Parameter(p.detach().to(dtype, copy=True), False) for p in part.parameters()}
    return copy.deepcopy(part, memo)


def faces(count: int, side: int, device: torch.device) -> Tensor:
    """(count, 3, side, side) in [0, 1]: smooth random pictures; timing does not depend on their content."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 3, 16, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return smooth.clamp(0.0, 1.0).to(device)
