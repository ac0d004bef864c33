"""What stands in for PyTorch's layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .convolution import WinogradConv
from .library import Workspace
from .packed import PackedConv
from .weights import in_float32


class HalfStoredLinear(nn.Module):
    """Stands in for a Linear on half-precision weights, which become float32 at every call."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = (
            layer.weight.detach()
        )  # no parameter: diffusers asks those which precision to compute in
        self.bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) to (…, N), float32."""
        return nn.functional.linear(x, self.weight.float(), self.bias)


class Layers:
    """Stand-ins that compute in float32."""

    def __init__(self) -> None:
        self.workspace = Workspace()

    def conv(self, conv: nn.Conv2d) -> nn.Module:
        """Return the stand-in for a layer that `PackedConv.suits`."""
        packed = PackedConv(conv)
        return WinogradConv(packed, self.workspace) if WinogradConv.suits(conv) else packed

    def linear(self, layer: nn.Linear) -> nn.Module:
        """Return the stand-in for a linear layer."""
        return in_float32(layer) if layer.weight.dtype == torch.float32 else HalfStoredLinear(layer)

    def attention(self, attention: Any) -> None:
        """Change how a copy of diffusers' Attention computes, in place; here it stays as it is."""
