"""Convolutions whose weights are put into oneDNN's own layout once, not at every call.

For the small feature maps of a UNet's depth that reordering costs as much as the convolution. The results are
the same to rounding.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from .weights import LentWeight, in_float32

WORTHWHILE = 1 << 18  # weights from which on the reordering is felt


@cache
def available() -> bool:
    """Return whether this PyTorch has the two operators (it uses them for its own compiled graphs)."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


class PackedConv(nn.Module):
    """Stands in for a Conv2d, in float32 and without gradient.

    Half-precision weights stay as they are and become float32 at every call, which takes half the memory.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.halved = conv.weight.dtype != torch.float32
        self.conv = in_float32(conv, weightless=self.halved)
        self.weight = LentWeight(conv.weight, Tensor.to_dense)
        self.packs = available() and not self.halved and conv.weight.numel() >= WORTHWHILE

    @staticmethod
    def suits(conv: nn.Module) -> bool:
        """Return whether `conv` is a plain Conv2d, no subclass and no adapter around one."""
        if type(conv) is not nn.Conv2d or isinstance(conv.padding, str):
            return False
        return conv.padding_mode == "zeros" and conv.groups == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W'), channels-last."""
        conv = self.conv
        if not self.packs:
            return conv._conv_forward(x, self.weight.plain().float(), conv.bias)
        shape = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        x = x.contiguous(memory_format=torch.channels_last)
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        packed = self.weight.packed(lambda own: reorder(own, *shape, list(x.shape)))
        return torch.ops.mkldnn._convolution_pointwise(x, packed, conv.bias, *shape, "none", [], "")
