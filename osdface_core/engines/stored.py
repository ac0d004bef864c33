"""Weights kept in half precision, arithmetic in float32: for CPUs that multiply half precision no faster.

Half the memory for the weights and, since each is read once per pass, less traffic; the result is nearer to
float32 than half-precision arithmetic is, as only the weights are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .packed import WORTHWHILE, PackedConv

LARGE = 1 << 23  # weights of a layer that are worth taking in parts
PART = 1 << 20  # weights of a part: still in the cache when they are multiplied


def in_float32(weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weights (O, ...) and bias of all outputs, or of a few after the other where all at once is slow."""
    outputs = len(weight)
    step = outputs if weight.numel() < LARGE else max(16, outputs * PART // weight.numel() // 16 * 16)
    for first in range(0, outputs, step):
        part = slice(first, first + step)
        yield weight[part].float(), None if bias is None else bias[part]


class StoredLinear(nn.Module):
    """Stands in for a Linear: (…, K) float32 to (…, N) float32 on half-precision weights."""

    stored: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        # A buffer: diffusers asks parameters which precision to compute in.
        self.register_buffer("stored", layer.weight.detach(), persistent=False)
        self.bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        parts = [nn.functional.linear(x, *part) for part in in_float32(self.stored, self.bias)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class StoredConv(PackedConv):
    """Stands in for a Conv2d: (B, C, H, W) float32 to (B, O, H', W') float32 on half-precision weights."""

    stored: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.register_buffer("stored", conv.weight.detach(), persistent=False)
        conv.weight = nn.Parameter(conv.weight.new_empty(0, dtype=torch.float32), requires_grad=False)

    @property
    def saves_memory(self) -> bool:
        return self.stored.numel() >= WORTHWHILE

    def weight(self) -> Tensor:
        return self.stored

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.conv._conv_forward(x, *part) for part in in_float32(self.stored, self.conv.bias)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
