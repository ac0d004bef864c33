"""The UNet and codec of a self-contained model (`arch` = "full"), randomly initialised."""

from __future__ import annotations

from torch import nn

from ..config import OSDFaceConfig, UNetConfig
from ..errors import CheckpointError
from .backbone import Backbone, UNetPredictor


def build_unet(cfg: UNetConfig, latent_channels: int, prompt_dim: int) -> nn.Module:
    """Build the UNet of a self-contained model, randomly initialised."""
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
    """Build codec and predictor of a self-contained model (`arch` = "full"), randomly initialised."""
    from .tiny_codec import TinyCodec

    if config.unet is None or config.codec.kind != "tiny":
        raise CheckpointError("config: a self-contained model needs unet and a tiny codec")
    unet = build_unet(config.unet, config.codec.latent_channels, config.projection.out)
    return Backbone(TinyCodec(config.codec), UNetPredictor(unet))
