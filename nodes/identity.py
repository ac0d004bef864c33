"""Is it still the same person? Scores, and a guard that gives up strength where the answer is no."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..osdface_core.errors import CheckpointError
from ..osdface_core.models.identity import MOBILEFACENET_FILE, embed, load_identity
from . import host

STEPS = 6  # of bisection: strength to 1/64
HOW = f"put {MOBILEFACENET_FILE} into models/{host.FOLDER}"
UNKNOWN = float("nan")
"""The score of a face where nobody could look, and the one entry of a list without faces."""


class Scorer:
    """The recognition network. It is small, and stays on the CPU: no video memory for a read-out."""

    def __init__(self, path: str | None) -> None:
        self.net = load_identity(path)

    @torch.inference_mode()
    def vectors(self, crops: Tensor) -> Tensor:
        """Embed aligned crops (N, 3, S, S) in [0, 1] as unit vectors (N, D) on the CPU."""
        with host.cancellable():
            parts = [embed(self.net, part.cpu()) for part in crops.split(16)] if len(crops) else []
        return torch.cat(parts) if parts else torch.zeros(0, 1)


@lru_cache(maxsize=1)
def _scorer(path: str | None, stamp: str) -> Scorer:
    del stamp  # part of the key: a replaced file is read again
    return Scorer(path)


def load_scorer(required: bool) -> Scorer | None:
    """Load the scorer; None where its weights are missing and nothing depends on them.

    Raises:
        CheckpointError: missing although required.
    """
    path = host.find_file(MOBILEFACENET_FILE)
    try:
        return _scorer(path, host.stamp(path))
    except CheckpointError as error:
        if required:
            raise CheckpointError(
                f"the identity guard needs a recognition network ({error}): {HOW}"
            ) from error
        host.log.info("no identity scores: %s to have them", HOW)
        return None


def check_guard(threshold: float | None) -> bool | str:
    """Answer VALIDATE_INPUTS for a threshold (None: it comes through a link): True, or what is missing."""
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        return f"{threshold} is not within 0 and 1"
    try:
        if threshold:  # without a guard, nothing is read or said before the run
            load_scorer(required=True)
    except CheckpointError as error:
        return str(error)
    return True


def scores(
    scorer: Scorer, before: Tensor, after: Tensor, reference: Tensor | None = None
) -> list[tuple[float, float]]:
    """Compute the cosine of identity per face, before and after restoration.

    Args:
        before, after: (N, 3, S, S) crops of the same faces.
        reference: (1 or N, 3, S, S) who they should be; else the face before is the measure (so 1.0, x).
    """
    own = scorer.vectors(before)
    target = own if reference is None else scorer.vectors(reference).expand(len(own), -1)
    pairs = zip((own * target).sum(1).tolist(), (scorer.vectors(after) * target).sum(1).tolist(), strict=True)
    return [(float(a), float(b)) for a, b in pairs]


def guard(
    scorer: Scorer, before: Tensor, after: Tensor, threshold: float, reference: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Blend each restored face back towards its original until its score reaches `threshold`.

    Args:
        before, after: (N, 3, S, S); `after` at the strength the user asked for.
        threshold: cosine in [0, 1].
    Returns:
        The guarded crops, and what is left of the strength per face, (N,) in [0, 1]. Where even the original
        stays below the threshold (possible with a reference), whichever of the two scores higher is kept.
    """
    ends = torch.tensor(scores(scorer, before, after, reference)).reshape(-1, 2)
    keep = torch.ones(len(before))
    failing = ends[:, 1] < threshold
    hopeless = failing & (ends[:, 0] < threshold)
    keep[hopeless] = (ends[hopeless, 1] >= ends[hopeless, 0]).float()
    search = failing & ~hopeless
    low, high = torch.zeros(len(before)), torch.ones(len(before))
    for _ in range(STEPS if bool(search.any()) else 0):
        middle = (low + high) / 2
        now = torch.tensor([s[1] for s in scores(scorer, before, mix(before, after, middle), reference)])
        low, high = torch.where(now >= threshold, middle, low), torch.where(now >= threshold, high, middle)
    keep = torch.where(search, low, keep)
    return mix(before, after, keep), keep


def mix(before: Tensor, after: Tensor, weight: Tensor) -> Tensor:
    """Blend per face: weight 0 gives `before`, 1 gives `after` exactly."""
    amount = weight.to(after.device, after.dtype).reshape(-1, 1, 1, 1)
    return torch.where(amount == 1.0, after, torch.lerp(before.to(after), after, amount))
