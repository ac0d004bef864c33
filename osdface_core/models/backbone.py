"""What one diffusion step needs: a latent codec and a noise predictor, and diffusers' versions of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import OSDFaceConfig, UNetConfig
from ..errors import CheckpointError
from ..options import Posterior


class LatentCodec(Protocol):
    """Between pictures in [-1, 1] and scaled latents, of any floating type; it casts to its own."""

    def encode(
        self, signed: Tensor, posterior: Posterior = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, 3, H, W) to (B, 4, H//8, W//8), multiplied by the scaling factor."""
        ...

    def decode(self, latent: Tensor, guide: Tensor | None = None) -> Tensor:
        """(B, 4, h, w) to (B, 3, 8h, 8w), not clamped. `guide`: the low-quality face in [-1, 1], for codecs
        with a fidelity branch; others ignore it."""
        ...


class NoisePredictor(Protocol):
    """The noise that a diffusion model sees in a latent; it casts its input to its own floating type."""

    def __call__(self, latent: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        """(B, 4, h, w), timestep [steps], (B, 77, D) to (B, 4, h, w)."""
        ...


@dataclass(frozen=True)
class Backbone:
    """The two protocols together."""

    codec: LatentCodec
    predictor: NoisePredictor


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the floating type of a module's weights."""
    return next(module.parameters()).dtype


class UNetPredictor(nn.Module):
    """A diffusers UNet2DConditionModel as `NoisePredictor`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latent: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        # A tensor of the batch's size: diffusers would copy a Python number to the device and wait for it.
        steps = torch.full((latent.shape[0],), timestep, device=latent.device, dtype=torch.long)
        dtype = dtype_of(self)
        latent, prompt = latent.to(dtype), prompt.to(dtype)
        return self.unet(latent, steps, encoder_hidden_states=prompt, return_dict=False)[0]


class KLCodec(nn.Module):
    """A diffusers AutoencoderKL as `LatentCodec`; `mode` is deterministic, `sample` draws the posterior."""

    def __init__(self, vae: nn.Module, scaling_factor: float) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = scaling_factor

    def encode(
        self, signed: Tensor, posterior: Posterior = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        distribution: Any = self.vae.encode(signed.to(dtype_of(self))).latent_dist  # type: ignore[operator]
        latent = distribution.mode() if posterior == "mode" else distribution.sample(generator)
        return latent * self.scaling_factor

    def decode(self, latent: Tensor, guide: Tensor | None = None) -> Tensor:
        latent = latent.to(dtype_of(self)) / self.scaling_factor
        return self.vae.decode(latent, return_dict=False)[0]  # type: ignore[operator]


def build_unet(cfg: UNetConfig, latent_channels: int, prompt_dim: int) -> nn.Module:
    """The UNet of a self-contained model, randomly initialised."""
    from diffusers import UNet2DConditionModel

    if len(cfg.block_out_channels) != len(cfg.cross_attention_levels):
        raise CheckpointError(
            f"unet: {len(cfg.block_out_channels)} widths, {len(cfg.cross_attention_levels)} attention flags"
        )
    attend = cfg.cross_attention_levels
    heads = tuple(max(1, width // cfg.attention_head_dim) for width in cfg.block_out_channels)
    return UNet2DConditionModel(
        sample_size=cfg.sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=cfg.block_out_channels,
        layers_per_block=cfg.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attend),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attend)),
        cross_attention_dim=prompt_dim,
        # diffusers takes heads per level under this name; see its issue 2011.
        attention_head_dim=heads,  # type: ignore[arg-type]
        norm_num_groups=cfg.norm_groups,
        use_linear_projection=True,
    )


def build_full(config: OSDFaceConfig) -> Backbone:
    """Codec and predictor of a self-contained model (`arch` = "full"), randomly initialised."""
    from .tiny_codec import TinyCodec

    if config.unet is None or config.codec.kind != "tiny":
        raise CheckpointError("config: a self-contained model needs unet and a tiny codec")
    unet = build_unet(config.unet, config.codec.latent_channels, config.projection.out)
    return Backbone(TinyCodec(config.codec), UNetPredictor(unet))
