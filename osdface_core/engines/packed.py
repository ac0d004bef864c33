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
    """Whether this PyTorch has the two operators (it uses them for its own compiled graphs)."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


class PackedConv(nn.Module):
    """Stands in for a Conv2d on the CPU, without gradient; gives up the ordinary weights when first used.

    Where the operators are missing it is the Conv2d.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.packed: Tensor | None = None

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1

    @property
    def saves_memory(self) -> bool:
        """Whether what is made of the weights should not be kept."""
        return False

    def weight(self) -> Tensor:
        """(O, C, kh, kw), whatever layout it is kept in."""
        return self.conv.weight.detach() if self.packed is None else self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H', W'), channels-last."""
        conv = self.conv
        if not available() or (self.packed is None and conv.weight.numel() < WORTHWHILE):
            return conv(x)
        shape = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        x = x.contiguous(memory_format=torch.channels_last)
        if self.packed is None:
            ops = torch.ops.mkldnn
            self.packed = ops._reorder_convolution_weight(conv.weight, *shape, list(x.shape))
            conv.weight = nn.Parameter(conv.weight.new_empty(0), requires_grad=False)
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, conv.bias, *shape, "none", [], "")
