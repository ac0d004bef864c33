"""Variational score distillation: restored latents are drawn to where photos lie (OSEDiff, arXiv 2406.08177).

Two diffusion models look at the same noised latent. The frozen base knows photos; its tuned copy knows what
the generator gives, since it is trained on that. Where the two disagree, the generator follows the base.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdface_core.models.backbone import dtype_of
from osdface_core.one_step import predict_x0


class TunedDiffusion(nn.Module):
    """The tuned copy; without its LoRA it is the frozen base.

    Args:
        unet: a diffusers UNet2DConditionModel with LoRA layers.
        scheduler: adds the noise, e.g. diffusers' DDPMScheduler with the model's betas.
        negative: (1, 77, D), the prompt that the frozen base is led away from; None for no guidance.
        cfg: strength of that guidance; 1 = none.
    """

    negative: Tensor | None

    def __init__(self, unet: nn.Module, scheduler: Any, negative: Tensor | None, cfg: float) -> None:
        super().__init__()
        self.unet: Any = unet
        self.scheduler = scheduler
        self.cfg = cfg
        self.register_buffer("negative", negative, persistent=False)

    def forward(self, noised: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
        """Predict the noise in (B, C, h, w) at (B,) timesteps, given (B, 77, D); float32."""
        dtype = dtype_of(self.unet)
        eps = self.unet(noised.to(dtype), timesteps, prompt.to(dtype), return_dict=False)[0]
        return eps.float()

    def guided(self, noised: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
        """Predict the noise as `forward`, away from the negative prompt."""
        if self.negative is None or self.cfg == 1:
            return self(noised, timesteps, prompt)
        prompts = torch.cat([self.negative.expand_as(prompt), prompt])
        without, given = self(noised.repeat(2, 1, 1, 1), timesteps.repeat(2), prompts).chunk(2)
        return torch.lerp(without, given, self.cfg)

    def clean(self, noised: Tensor, timesteps: Tensor, eps: Tensor) -> Tensor:
        """Take predicted noise out of noised latents: (B, C, h, w), float32."""
        alpha_bar = self.scheduler.alphas_cumprod.to(noised.device)[timesteps]
        return predict_x0(noised, eps, alpha_bar.view(-1, 1, 1, 1))


def distillation_loss(latent: Tensor, tuned: Tensor, frozen: Tensor) -> Tensor:
    """Compute a loss whose gradient at the latents points from the tuned model's answer to the frozen one's.

    gradient = 2 (tuned - frozen) / (mean |latent - frozen| N), the mean over each sample, N over all numbers.

    Args:
        latent: (B, C, h, w) with gradient.
        tuned, frozen: like it, the clean latents that the two models see in the noised ones.
    Returns:
        0-d float32.
    Source: OSEDiff, as its code has it (the weight is that of DMD, arXiv 2311.18828).
    """
    start = latent.detach()
    weight = (start - frozen).abs().mean((1, 2, 3), keepdim=True)
    return F.mse_loss(latent, start - (tuned - frozen) / weight)
