"""What an engine puts in the place of PyTorch's layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .packed import WORTHWHILE, PackedConv
from .stored import StoredConv, StoredLinear
from .winograd import WinogradConv, Workspace


class Layers:
    """Stand-ins of the engine `fast`; other engines put theirs instead.

    Attributes:
        worthwhile: weights from which on a layer is replaced.
        workspace: what the stand-ins take turns to use.
    """

    worthwhile = WORTHWHILE

    def __init__(self) -> None:
        self.workspace = Workspace()

    def conv(self, conv: nn.Conv2d) -> PackedConv:
        """A stand-in with float32 arithmetic, whatever the weights are in."""
        return PackedConv(conv) if conv.weight.dtype == torch.float32 else StoredConv(conv)

    def linear(self, layer: nn.Linear) -> nn.Module:
        """The same for a linear layer."""
        return layer if layer.weight.dtype == torch.float32 else StoredLinear(layer)

    def winograd(self, conv: PackedConv) -> WinogradConv:
        """For a layer that `WinogradConv.suits`."""
        return WinogradConv(conv, self.workspace)

    def attention(self, attention: Any) -> None:
        """Change how diffusers' Attention computes, in place; here it stays as it is."""
