"""Convolutions whose weights are put into oneDNN's own layout once, not at every call.

For the small feature maps of a UNet's depth that reordering costs as much as the convolution. The results are
the same to rounding.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

WORTHWHILE = 1 << 18  # weights from which on the reordering is felt


@cache
def available() -> bool:
    """Return whether this PyTorch has the two operators (it uses them for its own compiled graphs)."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


class PackedConv(nn.Module):
    """Stands in for a Conv2d, without gradient; it is that very layer where the operators are missing."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.packed: Tensor | None = None

    @staticmethod
    def suits(conv: nn.Module) -> bool:
        """Return whether `conv` is a plain Conv2d, no subclass and no adapter around one."""
        if type(conv) is not nn.Conv2d or isinstance(conv.padding, str):
            return False
        return conv.padding_mode == "zeros" and conv.groups == 1

    def weight(self) -> Tensor:
        """Return the weights (O, C, kh, kw)."""
        return self.conv.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W'), channels-last."""
        conv = self.conv
        if not available() or conv.weight.numel() < WORTHWHILE:
            return conv(x)
        shape = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        x = x.contiguous(memory_format=torch.channels_last)
        packed = self.packed
        if packed is None:  # two threads may both make it: to the same numbers
            ops = torch.ops.mkldnn
            packed = ops._reorder_convolution_weight(conv.weight.detach(), *shape, list(x.shape))
            self.packed = packed
        return torch.ops.mkldnn._convolution_pointwise(x, packed, conv.bias, *shape, "none", [], "")
