"""How hard each loss pulls at the restored latent, and adversarial weights that follow it."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from .discriminators import Opponent


class Balance:
    """Gradient norms at the restored latent, every few steps.

    That tensor is where all losses of both modes meet, latent and pixel ones. Recipe.md §3.5 aims at an
    adversarial gradient of 10-30 % of the perceptual one.

    Args:
        every: steps between two measurements; 0 measures only what adaptive opponents need to begin.
    """

    def __init__(self, accelerator: Accelerator, every: int) -> None:
        self.accelerator, self.every = accelerator, every
        self.factors: dict[str, Tensor] = {}

    def due(self, step: int, active: list[Opponent]) -> bool:
        """Whether to measure in this step."""
        begins = any(o.cfg.adaptive and o.name not in self.factors for o in active)
        return begins or (self.every > 0 and step % self.every == 0)

    def measure(
        self, latent: Tensor, terms: Mapping[str, Tensor], total: Tensor, attacks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Norms by name; refreshes the factors of the attacks.

        Args:
            latent: (B, 4, h, w), part of all graphs, which are kept.
            terms: weighted losses; total: their sum.
            attacks: unweighted adversarial losses by opponent.
        """
        norms = {name: self._norm(value, latent) for name, value in {**terms, **attacks}.items()}
        pull = self._norm(total, latent)
        for name in attacks:
            self.factors[name] = (pull / (norms[name] + 1e-8)).clamp(0, 1e4)
        return {f"gradient/{name}": norm for name, norm in norms.items()} | {"gradient/total": pull}

    def _norm(self, value: Tensor, at: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(value, at, retain_graph=True)
        norm = self.accelerator.reduce(gradient.float().norm(), "mean")
        assert isinstance(norm, Tensor)
        return norm

    def weight(self, opponent: Opponent, step: int) -> Tensor | float:
        """λ of an adversarial loss: its table's weight, ramped up, times its factor when adaptive."""
        weight = opponent.cfg.weight * opponent.share(step)
        return weight * self.factors[opponent.name] if opponent.cfg.adaptive else weight
