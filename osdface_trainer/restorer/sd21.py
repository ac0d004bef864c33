"""Shapes of Stable Diffusion 2.1-base, for dry runs and timing without its weights."""

from typing import Any

from osdface_core.models.backbone import Backbone, KLCodec, UNetPredictor

# The published unet/config.json and vae/config.json: 865.9 M and 83.7 M parameters.
UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}


def random_base() -> Backbone:
    """Build a Stable Diffusion 2.1-base with random weights, on torch's default device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    vae: Any = AutoencoderKL(**VAE)
    unet: Any = UNet2DConditionModel(**UNET)
    codec = KLCodec(vae.eval().requires_grad_(False), VAE["scaling_factor"])
    return Backbone(codec, UNetPredictor(unet.eval().requires_grad_(False)))
