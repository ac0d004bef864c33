"""The codebook: nearest codes, straight-through quantisation, and the 77 distinct codes of the prompt."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantised(NamedTuple):
    """Result of `Codebook.forward`: codes (B, D, H, W) with straight-through gradient, indices (B, H*W)."""

    codes: Tensor
    raw_codes: Tensor
    indices: Tensor


def squared_distances(features: Tensor, codebook: Tensor) -> Tensor:
    """Compute |h|^2 + |e|^2 - 2 h.e for every position and code.

    Args:
        features: (B, D, H, W), float32.
        codebook: (K, D), float32.
    Returns:
        (B, H*W, K), float32. Float32 because |h|^2 overflows in float16 and bfloat16 reorders the codes.
    Raises:
        ValueError: D differs between the two.
    """
    if features.shape[1] != codebook.shape[1]:
        raise ValueError(f"features have {features.shape[1]} channels, the codebook has {codebook.shape[1]}")
    h = features.float().flatten(2).transpose(1, 2)
    e = codebook.float()
    return h.square().sum(-1, keepdim=True) + e.square().sum(-1) - 2.0 * h @ e.t()


class Tokens(NamedTuple):
    """The prompt's tokens, nearest first; -1 in both where fewer distinct codes occur.

    Attributes:
        codes: (B, N) int64 indices into the codebook.
        positions: (B, N) int64, where in the feature map each code came nearest, row by row.
    """

    codes: Tensor
    positions: Tensor


def select_tokens(features: Tensor, codebook: Tensor, count: int) -> Tokens:
    """Pick the `count` closest distinct codes of each image.

    Every position names its nearest code; a code's key is its smallest distance; the smallest keys win,
    nearest first, equal keys in order of position.

    Args:
        features: (B, D, H, W), VRE feature space.
        codebook: (K, D).
        count: prompt length [tokens].
    Source: OSDFace §3.2, Eq. 5-6; the released code walks the sorted positions one image at a time.
    """
    distance, nearest = squared_distances(features, codebook).min(dim=-1)
    order = distance.argsort(dim=1, stable=True)
    ranked = nearest.gather(1, order)
    positions = torch.arange(ranked.shape[1], device=ranked.device).expand_as(ranked)
    # First appearance of each code in the ranking; codes that never occur keep the sentinel.
    sentinel = ranked.shape[1]
    first = torch.full((ranked.shape[0], codebook.shape[0]), sentinel, device=ranked.device)
    first = first.scatter_reduce(1, ranked, positions, reduce="amin")
    rank, code = first.sort(dim=1, stable=True)
    found = rank < sentinel
    place = order.gather(1, torch.where(found, rank, 0))
    return Tokens(*(_first(torch.where(found, chosen, -1), count) for chosen in (code, place)))


def _first(tokens: Tensor, count: int) -> Tensor:
    """The first `count` columns, filled up with -1."""
    tokens = tokens[:, :count]
    return torch.nn.functional.pad(tokens, (0, count - tokens.shape[1]), value=-1)


def lookup(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Look indices (B, N) up: (B, N, D) codes; -1 gives a zero row (released behaviour)."""
    rows = codebook[tokens.clamp_min(0)]
    return rows * (tokens >= 0).unsqueeze(-1).to(rows.dtype)


class Codebook(nn.Module):
    """K codes of dimension D under the released name `embedding`, initialised U(-1/K, 1/K)."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / size, 1.0 / size)

    def forward(self, features: Tensor) -> Quantised:
        """Replace every position by its nearest code (straight-through estimator).

        Args:
            features: (B, D, H, W).
        """
        indices = squared_distances(features, self.embedding.weight).argmin(-1)
        b, d, h, w = features.shape
        codes = self.embedding(indices).transpose(1, 2).reshape(b, d, h, w)
        return Quantised(features + (codes - features).detach(), codes, indices)
