"""A small picture of the whole face from its latent, at a hundredth of the decoder's cost.

Windows of a few hundred pixels cannot tell whether a face has two eyes in their places. The first level of
the codec's decoder, fitted to answer with 128 px, shows the whole face at every step.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from ..recipe.restorer import RestorerTraining
from .generator import Generator
from .latent_cache import Encoded

SCALE = 2  # [px] per latent cell and axis


class LatentPreview(nn.Module):
    """Latents to a small picture; frozen but for the steps in which it is fitted.

    Args:
        decoder: the tiny codec's, whose layers before the first enlargement are copied.
        channels: of the decoder.
    """

    def __init__(self, decoder: Any, channels: int) -> None:
        super().__init__()
        enlarges = next(i for i, layer in enumerate(decoder.layers) if isinstance(layer, nn.Upsample))
        self.body = nn.Sequential(*copy.deepcopy(list(decoder.layers)[:enlarges])).requires_grad_(True)
        self.out = nn.Conv2d(channels, 3 * SCALE**2, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Show (B, 4, h, w) as (B, 3, 2h, 2w), about [-1, 1]."""
        return F.pixel_shuffle(self.out(self.body(torch.tanh(latent / 3.0) * 3.0)), SCALE)


def small_picture(signed: Tensor) -> Tensor:
    """Shrink (B, 3, H, W) to what a preview of its latent should show, (B, 3, H/4, W/4)."""
    return F.interpolate(signed, scale_factor=SCALE / 8, mode="area")


class PreviewFit:
    """A preview and what fits it.

    Attributes:
        net: the preview, without gradient for its weights outside of `fit`.
    """

    def __init__(self, generator: Generator, cfg: RestorerTraining, accelerator: Accelerator) -> None:
        net = LatentPreview(generator.codec.decoder, generator.config.codec.channels)
        self.net = net.to(accelerator.device).requires_grad_(False)
        self.cfg, self.accelerator = cfg.preview, accelerator
        self.optimizer = AdamW(self.net.parameters(), lr=self.cfg.lr)

    def fit(self, encoded: Encoded, lq: Tensor, hq: Tensor) -> None:
        """Step once towards showing clean and degraded latents as their faces (signed) look when small."""
        latents, target = torch.cat([encoded.hq, encoded.lq]), small_picture(torch.cat([hq, lq]))
        with torch.enable_grad():
            self.net.requires_grad_(True)
            loss = (self.net(latents).float() - target).abs().mean()
            gradients = torch.autograd.grad(loss, list(self.net.parameters()))
            self.net.requires_grad_(False)
        for parameter, gradient in zip(self.net.parameters(), gradients, strict=True):
            parameter.grad = self.accelerator.reduce(gradient, "mean")  # type: ignore[assignment]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
