"""Association loss: tokens of the LQ encoder must find their HQ twins (OSDFace Eq. 9-10)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
"""Constant, never learned (DAEFR, arXiv 2308.07314, trains with it so)."""

Scope = Literal["batch", "image"]


def association_loss(
    hq: Tensor, lq: Tensor, *, temperature: float = TEMPERATURE, scope: Scope = "batch"
) -> Tensor:
    """Compute symmetric cross-entropy over cosines of HQ and LQ tokens; the same position is the answer.

    Args:
        hq, lq: (B, C, H, W) features *before* quantisation of pixel-aligned pairs.
        temperature: cosines are divided by it.
        scope: "batch" compares each token with all tokens of the local batch, "image" with those of its own
            image.
    Returns:
        float32 scalar; ln(N) where all tokens are alike, N = B·H·W or H·W. Gradients flow to both sides.
    Raises:
        ValueError: if the shapes differ.
    Source: OSDFace §3.3, Eq. 9-10; scope: the paper prints image, DAEFR uses batch.
    """
    with torch.autocast(hq.device.type, enabled=False):
        logits = _cosines(hq, lq, scope) / temperature
        groups, count, _ = logits.shape
        answers = torch.arange(count, device=logits.device).repeat(groups)
        to_lq = F.cross_entropy(logits.flatten(0, 1), answers)
        to_hq = F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), answers)
        return (to_lq + to_hq) / 2


@torch.no_grad()
def association_accuracy(hq: Tensor, lq: Tensor, *, scope: Scope = "batch") -> Tensor:
    """Compute the share of tokens whose most similar partner is the right one, mean of both directions."""
    cosines = _cosines(hq, lq, scope)
    answers = torch.arange(cosines.shape[1], device=cosines.device)
    to_lq = (cosines.argmax(2) == answers).float().mean()
    to_hq = (cosines.argmax(1) == answers).float().mean()
    return (to_lq + to_hq) / 2


def _cosines(hq: Tensor, lq: Tensor, scope: Scope) -> Tensor:
    """Compute (groups, N, N): rows HQ tokens, columns LQ ones; one group for "batch", B for "image"."""
    if hq.shape != lq.shape or hq.ndim != 4:
        raise ValueError(
            f"association: got {tuple(hq.shape)} and {tuple(lq.shape)}, expected equal (B, C, H, W)"
        )
    tokens_hq, tokens_lq = (F.normalize(x.float().flatten(2).transpose(1, 2), dim=2) for x in (hq, lq))
    if scope == "batch":
        tokens_hq, tokens_lq = (x.flatten(0, 1).unsqueeze(0) for x in (tokens_hq, tokens_lq))
    return tokens_hq @ tokens_lq.transpose(1, 2)
