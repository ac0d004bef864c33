"""What stands in for PyTorch's layers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .convolution import WinogradConv
from .library import Workspace
from .packed import PackedConv

Kind = TypeVar("Kind", bound=nn.Module)


class Layers:
    """Stand-ins that compute in float32."""

    def __init__(self) -> None:
        self.workspace = Workspace()

    def conv(self, conv: nn.Conv2d) -> nn.Module:
        """Return the stand-in for a layer that `PackedConv.suits`."""
        packed = PackedConv(in_float32(conv))
        return WinogradConv(packed, self.workspace) if WinogradConv.suits(conv) else packed

    def linear(self, layer: nn.Linear) -> nn.Module:
        """Return the stand-in for a linear layer."""
        return in_float32(layer)

    def attention(self, attention: Any) -> None:
        """Change how a copy of diffusers' Attention computes, in place; here it stays as it is."""


def in_float32(module: Kind) -> Kind:
    """Return a copy with the same submodules and its own weights in float32, shared where they are so."""
    copied = module.__new__(type(module))
    copied.__dict__.update(vars(module))
    copied._modules = dict(module._modules)
    copied._buffers = {k: _float32(v) for k, v in module._buffers.items()}
    copied._parameters = {
        k: v if v is None or v.dtype == torch.float32 else nn.Parameter(v.detach().float(), False)
        for k, v in module._parameters.items()
    }
    return copied


def _float32(buffer: Tensor | None) -> Tensor | None:
    return buffer.float() if buffer is not None and buffer.is_floating_point() else buffer
