"""How the codes of a codebook learn beside the optimiser, and how well they are used.

A codebook of 1024 codes tends to collapse: a few codes take every feature, the rest are never used and
therefore never move. The prompt needs 77 distinct codes for each face, so collapse costs quality directly.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed
from ..recipe.vre import CodebookConfig
from ..seeds import mix

Reduce = Callable[[Tensor], Tensor]


def vq_loss(features: Tensor, codes: Tensor, settings: CodebookConfig) -> Tensor:
    """Compute the VQ loss between features and their codes, means over all elements, 0-d.

    Args:
        features: (B, D, h, w) before quantisation, with gradient.
        codes: (B, D, h, w) nearest codes, with gradient to the codebook (unused with `update = "ema"`).
    Source: paper Eq. 7, ‖sg(Z) − Z^c‖² + β‖Z − sg(Z^c)‖²; `beta_on = "codebook"` moves β as the lineage's
        code does.
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
    """Measure the use of a codebook on one batch, 0-d tensors.

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


class CodebookUpdater:
    """Running use of each code; with `update = "ema"` also the running mean that replaces its gradient.

    Collapse is countered by moving codes that nothing uses onto features of the current batch. All of it is
    tensor code without a host sync; every process comes to the same codes.
    """

    def __init__(self, weight: Tensor, settings: CodebookConfig, reduce: Reduce, gather: Reduce) -> None:
        """`weight` is (K, D), perhaps sharded; `reduce` sums and `gather` concatenates over the processes."""
        self.settings = settings
        self._weight, self._reduce, self._gather = weight, reduce, gather
        size = weight.shape[0]
        self.hits = torch.ones(size, device=weight.device)  # running mean per step
        self.recent = torch.zeros(size, device=weight.device)  # since the last revival
        self.total = self.codes.clone()  # running sum of the features of each code

    @property
    def codes(self) -> Tensor:
        """Return the codes (K, D), gathered."""
        return distributed.gather(self._weight.detach())

    def _write(self, codes: Tensor) -> None:
        self._weight.copy_(distributed.like(self._weight, codes))

    @torch.no_grad()
    def start(self, features: Tensor) -> None:
        """Put every code onto a feature of the first batch, (B, positions, D); for `init = "data"`."""
        self._move(torch.ones_like(self.hits, dtype=torch.bool), features.float(), 0)

    @torch.no_grad()
    def update(self, features: Tensor, indices: Tensor, step: int, steps: int) -> None:
        """Learn from what one optimiser step saw on this process.

        Args:
            features: (B, positions, D), before quantisation.
            indices: (B, positions), the nearest code of each.
            step, steps: position in the phase and its length.
        """
        features = features.float()
        chosen = F.one_hot(indices.flatten(), self.hits.shape[0]).to(features.dtype)
        hits = self._reduce(chosen.sum(0))
        self.recent += hits
        self.hits.lerp_(hits, 1 - self.settings.decay)
        if self.settings.update == "ema":
            self._average(chosen.t() @ features.flatten(0, 1))
        every = self.settings.revive_every
        if every > 0 and (step + 1) % every == 0:
            if step < self.settings.revive_until * steps:
                self._move(self.recent == 0, features, step + 1)
            self.recent.zero_()

    def _average(self, sums: Tensor) -> None:
        """Move each code to the running mean of its features."""
        self.total.lerp_(self._reduce(sums), 1 - self.settings.decay)
        # Laplace smoothing keeps a code that nobody uses from being divided by almost nothing.
        mass, size = self.hits.sum(), self.hits.shape[0]
        smooth = (self.hits + 1e-5) / (mass + size * 1e-5) * mass
        self._write(self.total / smooth.unsqueeze(1))

    def _move(self, dead: Tensor, features: Tensor, draw: int) -> None:
        """Put the codes where `dead` is true onto random features, with an average share of the hits.

        All processes draw the same features from the whole batch, in the order of its samples (process r has
        samples r, r + world, …), so the number of processes makes no difference.
        """
        whole = self._gather(features.contiguous())
        whole = whole.unflatten(0, (-1, len(features))).transpose(0, 1).flatten(0, 2)
        source = torch.Generator().manual_seed(mix(0xD1C7, draw))
        picks = torch.randint(len(whole), self.hits.shape, generator=source)
        candidates = whole[picks.to(whole.device)]
        share = self.hits.mean()
        self._write(torch.where(dead.unsqueeze(1), candidates, self.codes))
        self.hits = torch.where(dead, share, self.hits)
        self.total = torch.where(dead.unsqueeze(1), candidates * share, self.total)

    def state_dict(self) -> dict[str, Tensor]:
        """Return running averages, and the codes, which no optimiser knows with `update = "ema"`."""
        return {
            "hits": self.hits,
            "recent": self.recent,
            "total": self.total,
            "codes": self.codes,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.hits = state["hits"].to(self.hits, copy=True)
        self.recent = state["recent"].to(self.recent, copy=True)
        self.total = state["total"].to(self.total, copy=True)
        self._write(state["codes"])
