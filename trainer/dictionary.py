"""How the codes of a dictionary learn beside the optimiser, and how healthy it is.

A dictionary of 1024 codes tends to collapse: a few codes take every feature, the rest are never used and
therefore never move. The prompt needs 77 distinct codes for each face, so collapse costs quality directly.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vre_config import Dictionary as Settings

Reduce = Callable[[Tensor], Tensor]


def vq_loss(features: Tensor, codes: Tensor, settings: Settings) -> Tensor:
    """Features and their codes pull at each other, means over all elements.

    Args:
        features: (B, D, h, w) before quantisation, with gradient.
        codes: (B, D, h, w) nearest codes, with gradient to the dictionary (unused with `update = "ema"`).
    Source: paper Eq. 7, ‖sg(Z) − Z^c‖² + β‖Z − sg(Z^c)‖²; `beta_on = "codebook"` moves β as the lineage's
        code does (recipe.md §1.2).
    """
    commitment = F.mse_loss(features, codes.detach())
    if settings.update == "ema":
        return settings.beta * commitment
    codebook = F.mse_loss(codes, features.detach())
    if settings.beta_on == "codebook":
        return commitment + settings.beta * codebook
    return codebook + settings.beta * commitment


@torch.no_grad()
def usage(indices: Tensor, size: int, tokens: int) -> dict[str, Tensor]:
    """Health of a dictionary on one batch, 0-d tensors.

    Args:
        indices: (B, positions), int64.
        size: K, number of codes.
        tokens: prompt length, 77.
    Returns:
        perplexity: exp of the entropy of code use, 1 (collapsed) to K.
        used: codes that occur in the batch.
        distinct: distinct codes per image, mean; at least `tokens` fills the prompt.
        distinct_min: the same of the poorest image.
        filled: share of the prompt that distinct codes fill, mean over images.
    """
    present = torch.zeros(indices.shape[0], size, device=indices.device)
    present.scatter_add_(1, indices, torch.ones_like(indices, dtype=present.dtype))
    share = present.sum(0) / indices.numel()
    distinct = (present > 0).sum(1).float()
    return {
        "perplexity": torch.exp(-(share * torch.log(share + 1e-10)).sum()),
        "used": (present.sum(0) > 0).sum().float(),
        "distinct": distinct.mean(),
        "distinct_min": distinct.min(),
        "filled": (distinct / tokens).clamp(max=1).mean(),
    }


class Dictionary:
    """Running use of each code; with `update = "ema"` also the running mean that replaces its gradient.

    Collapse is countered by moving codes that are hardly used onto features of the current batch. All of it
    is tensor code without a host sync; every process comes to the same codes.
    """

    def __init__(self, weight: nn.Parameter, settings: Settings, reduce: Reduce, gather: Reduce) -> None:
        """`weight` is (K, D); `reduce` sums and `gather` concatenates a tensor over the processes."""
        self.settings = settings
        self._weight, self._reduce, self._gather = weight, reduce, gather
        size = weight.shape[0]
        self.hits = torch.ones(size, device=weight.device)
        self.total = weight.detach().clone()
        if settings.update == "ema":
            weight.requires_grad_(False)

    @torch.no_grad()
    def observe(self, features: Tensor, indices: Tensor, step: int, steps: int) -> None:
        """Learn from what one optimiser step saw on this process.

        Args:
            features: (N, D), before quantisation.
            indices: (N,), the nearest code of each.
            step, steps: position in the phase and its length.
        """
        features = features.float()
        if step == 0 and self.settings.init == "data" and not self._started():
            self._move(torch.ones_like(self.hits, dtype=torch.bool), features)
            return
        self._average(features, indices)
        revive = self.settings.revive_below > 0 and step < self.settings.revive_until * steps
        if revive and (step + 1) % self.settings.revive_every == 0:
            self._move(self.hits < self.settings.revive_below, features)

    def _started(self) -> bool:
        """Whether this dictionary has learned before: its running use has left the initial ones."""
        return bool((self.hits != 1).any())

    def _average(self, features: Tensor, indices: Tensor) -> None:
        size, decay = self.hits.shape[0], self.settings.decay
        chosen = F.one_hot(indices, size).to(features.dtype)
        hits = self._reduce(chosen.sum(0))
        self.hits.lerp_(hits, 1 - decay)
        if self.settings.update != "ema":
            return
        self.total.lerp_(self._reduce(chosen.t() @ features), 1 - decay)
        # Laplace smoothing keeps a code that nobody uses from being divided by almost nothing.
        mass = self.hits.sum()
        smooth = (self.hits + 1e-5) / (mass + size * 1e-5) * mass
        self._weight.copy_(self.total / smooth.unsqueeze(1))

    def _move(self, dead: Tensor, features: Tensor) -> None:
        """Put the codes where `dead` is true onto random features, with an average share of the hits."""
        size = self.hits.shape[0]
        picks = torch.randint(features.shape[0], (size,), device=features.device)
        candidates = self._gather(features[picks].contiguous())
        candidates = candidates[:: candidates.shape[0] // size][:size]
        share = self.hits.mean().clamp_min(self.settings.revive_below)
        self._weight.copy_(torch.where(dead.unsqueeze(1), candidates, self._weight))
        self.hits = torch.where(dead, share, self.hits)
        self.total = torch.where(dead.unsqueeze(1), candidates * share, self.total)

    def state_dict(self) -> dict[str, Tensor]:
        """Running averages, and the codes, which no optimiser knows with `update = "ema"`."""
        return {"hits": self.hits, "total": self.total, "codes": self._weight.detach()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.hits = state["hits"].to(self.hits, copy=True)
        self.total = state["total"].to(self.total, copy=True)
        self._weight.copy_(state["codes"])
