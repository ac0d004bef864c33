"""Diffusion-feature discriminator: a UNet's way down judges noised latents (OSDFace Eq. 15-16).

The down and middle blocks of a pretrained UNet already tell noisy latents of photos from those of other
things; a LoRA (or, for small networks, full training) and a small head turn that into one realism logit per
location.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class DiffusionDiscriminator(nn.Module):
    """Realism of scaled latents, seen through noise, given the visual prompt.

    Args:
        unet: a diffusers UNet2DConditionModel or a `trunk` of one; its up blocks are never run.
        scheduler: adds the noise, e.g. diffusers' DDPMScheduler with the model's betas.
        hidden: width of the head: 1×1 convolution, SiLU, 1×1 convolution to one logit, in float32.
    Source: OSDFace §3.4 after D3SR; head width and activation are ours.
    """

    def __init__(self, unet: nn.Module, scheduler: Any, hidden: int = 512) -> None:
        super().__init__()
        self.unet: Any = unet
        self.scheduler = scheduler
        channels = int(self.unet.config.block_out_channels[-1])
        self.head = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, 1, 1))

    def forward(self, latents: Tensor, timesteps: Tensor, prompt: Tensor, noise: Tensor) -> Tensor:
        """Compute logits of latents at a noise level.

        Args:
            latents: (B, C, h, w), scaled, clean.
            timesteps: (B,) integers; give both halves of a pair the same.
            prompt: (B, N, D), detached by the caller for the discriminator's own step.
            noise: like `latents`, independent for real and generated ones.
        Returns:
            (B, 1, h/8, w/8) float32 for a UNet of four levels.
        """
        noised = self.scheduler.add_noise(latents.float(), noise.float(), timesteps)
        features = mid_features(self.unet, noised, timesteps, prompt)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())


def mid_features(unet: Any, noised: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
    """Run a UNet2DConditionModel up to its middle block and return what that gives.

    Args:
        noised: (B, C, h, w).
        timesteps: (B,) integers.
        prompt: (B, N, D).
    Returns:
        (B, channels of the last level, h/2^(levels-1), w/2^(levels-1)).
    """
    x = noised.to(unet.conv_in.weight.dtype)
    prompt = prompt.to(x.dtype)
    emb = unet.time_embedding(unet.get_time_embed(sample=x, timestep=timesteps))
    x = unet.conv_in(x)
    for block in unet.down_blocks:
        x, _ = block(x, emb, encoder_hidden_states=prompt) if _attends(block) else block(x, emb)
    return (
        unet.mid_block(x, emb, encoder_hidden_states=prompt)
        if _attends(unet.mid_block)
        else unet.mid_block(x, emb)
    )


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def trunk(unet: nn.Module, *, share: bool) -> nn.Module:
    """Take the way down of a UNet as a module of its own: conv_in, time embedding, down and middle blocks.

    Args: see `copy_unet`.
    """
    return copy_unet(unet, share=share, without=("up_blocks", "conv_norm_out", "conv_out"))


def copy_unet(unet: nn.Module, *, share: bool, without: Sequence[str] = ()) -> nn.Module:
    """Copy a UNet for a network that learns beside it.

    Args:
        unet: a UNet2DConditionModel without adapters.
        share: True uses the *same* weight tensors (they cost no memory twice, and must stay frozen: a LoRA
            goes into each side's own modules); False copies them, for training them.
        without: parts that the copy does not have.
    Raises:
        ValueError: if the UNet already carries LoRA layers, which would be shared with the copy.
    """
    if any("lora_" in name for name, _ in unet.named_parameters()):
        raise ValueError("the UNet already carries LoRA layers; copy it before attaching them")
    memo: dict[int, Any] = {}
    for name in without:
        if (part := getattr(unet, name, None)) is not None:
            # deepcopy takes the memo's object instead of copying.
            memo[id(part)] = nn.ModuleList() if isinstance(part, nn.ModuleList) else nn.Identity()
    if share:
        memo |= {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, memo)
