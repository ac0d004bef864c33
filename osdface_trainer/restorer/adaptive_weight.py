"""Gradient norm of each loss at the restored latent, and adversarial weights derived from them."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from ..distributed import all_mean
from .discriminators import Discriminator


class AdaptiveWeight:
    """Scales each adversarial loss to a share of the other losses' gradient, measured every few steps.

    The norms are taken at the restored latent: there the losses of both modes meet, latent and pixel ones.

    Args:
        every: steps between two measurements; 0 measures only when an adaptive discriminator starts.
    """

    def __init__(self, accelerator: Accelerator, every: int) -> None:
        self.accelerator, self.every = accelerator, every
        self.factors: dict[str, Tensor] = {}

    def due(self, step: int, active: list[Discriminator]) -> bool:
        """Tell whether to measure in this step."""
        begins = any(o.cfg.adaptive and o.name not in self.factors for o in active)
        return begins or (self.every > 0 and step % self.every == 0)

    def measure(
        self, latent: Tensor, terms: Mapping[str, Tensor], total: Tensor, adversarial: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Measure gradient norms and refresh the factors of the adversarial losses.

        Args:
            latent: (B, 4, h, w), part of all graphs, which are kept.
            terms: weighted losses, 0-d; total: their sum.
            adversarial: unweighted adversarial losses by discriminator, 0-d.
        Returns:
            Norms by name, 0-d.
        """
        norms = {name: self._norm(value, latent) for name, value in {**terms, **adversarial}.items()}
        pull = self._norm(total, latent)
        for name in adversarial:
            self.factors[name] = (pull / (norms[name] + 1e-8)).clamp(0, 1e4)
        return {f"gradient/{name}": norm for name, norm in norms.items()} | {"gradient/total": pull}

    def _norm(self, value: Tensor, at: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(value, at, retain_graph=True)
        return all_mean(self.accelerator, gradient.float().norm())

    def weight(self, discriminator: Discriminator, step: int) -> Tensor | float:
        """Compute λ of an adversarial loss: its table's weight, ramped up, times its factor when adaptive."""
        weight = discriminator.cfg.weight * discriminator.ramp(step)
        return weight * self.factors[discriminator.name] if discriminator.cfg.adaptive else weight
