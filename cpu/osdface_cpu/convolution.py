"""3x3 convolutions by Winograd's F(6x6, 3x3), with what goes before and after them in the same pass.

64 products give 36 outputs instead of 324 (Lavin & Gray, arXiv 1509.09308, §4.1-4.3). A thread takes a part
of the picture at a time that fits its cache; scale, shift, SiLU and nearest upsampling happen on that part as
well, so no whole picture is written and read for them. The number of threads changes no bit: each output is
the same sum in the same order.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .library import Workspace, at, library, sizes
from .packed import PackedConv

CHANNELS = 32  # widths must be multiples of it
NARROW = 64  # least channels from which on Winograd gains
SMALL = 1024  # pixels from which on it does
CELLS_AT_ONCE = 256  # pixels whose sums are taken in float32: few enough for its digits and the cache


@dataclass(frozen=True)
class Before:
    """What happens to the input on its way into the convolution.

    Attributes:
        scale, shift: (B, C), x * scale + shift; None for no change.
        silu: SiLU after that.
        double: nearest upsampling by two instead.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    silu: bool = False
    double: bool = False

    def picture(self, index: int) -> Before:
        """Return the same for one picture of the batch."""
        if self.scale is None or self.shift is None:
            return self
        return replace(self, scale=self.scale[index].contiguous(), shift=self.shift[index].contiguous())


class Convolution(ctypes.Structure):
    """`struct Convolution` of cpp/winograd.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "kernel", "bias", "residual", "scale", "shift", "out")),
        *((name, ctypes.c_int64) for name in ("height", "width", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("silu", "relu", "twice", "threads")),
    )


def channel_sums(picture: Tensor) -> Tensor:
    """Return sums and sums of squares of each channel: (pixels, C) float32 to (2, C) float64."""
    (pixels, channels), cells = picture.shape, CELLS_AT_ONCE
    found = torch.empty(-(-pixels // cells), 2, channels, dtype=torch.float64)
    counts = sizes(pixels, channels, cells, torch.get_num_threads())
    library().osdface_sums(at(picture), at(found), *counts)
    return found.sum(0)


class WinogradConv(nn.Module):
    """Stands in for a 3x3 convolution of stride 1 and padding 1, float32, without gradient."""

    def __init__(self, direct: PackedConv, workspace: Workspace) -> None:
        """`direct`: the layer for pictures that are too small."""
        super().__init__()
        self.direct = direct
        own = direct.conv.bias
        self.bias = torch.zeros(direct.conv.out_channels) if own is None else own.detach().float()
        self.workspace = workspace
        self._kernel: Tensor | None = None

    @staticmethod
    def suits(conv: nn.Module) -> bool:
        """Return whether the layer is of the kind (no subclass, no adapter around it), and wide enough."""
        if type(conv) is not nn.Conv2d:
            return False
        plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
        plain = plain and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
        widths = (conv.in_channels, conv.out_channels)
        return plain and min(widths) >= NARROW and not any(width % CHANNELS for width in widths)

    def fits(self, height: int, width: int) -> bool:
        """Return whether an output of that size is large enough to gain."""
        return height * width >= SMALL

    def kernel(self) -> Tensor:
        """Return the transformed weights, seven times their room in float32.

        They are made at the first use and kept; of half-precision weights, which save memory, at every use.
        """
        # Two threads may both make it: to the same numbers.
        if self._kernel is not None:
            return self._kernel
        weight = self.direct.weight.plain()
        outputs, inputs = weight.shape[:2]
        count = library().osdface_places() * inputs * outputs
        kernel = self.workspace.get("kernel", count) if self.direct.halved else torch.empty(count)
        taps = weight.permute(2, 3, 1, 0).contiguous().float()
        library().osdface_kernel(at(taps), at(kernel), *sizes(inputs, outputs, torch.get_num_threads()))
        if not self.direct.halved:
            self._kernel = kernel
        return kernel

    def forward(
        self,
        x: Tensor,
        before: Before | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
        onto: bool = False,
    ) -> Tensor:
        """Map (B, C, H, W) to (B, O, H, W), channels-last; twice the sides with `before.double`.

        Args:
            bias: (B, O) instead of the layer's own.
            residual: like the output, added to it.
            relu: ReLU at the very end.
            onto: overwrite `residual` (channels-last) with the result instead of taking more memory.
        """
        before = before or Before()
        factor = 2 if before.double else 1
        size = (x.shape[2] * factor, x.shape[3] * factor)
        if not self.fits(*size):
            return self._directly(x, before, bias, residual, relu)
        kernel = self.kernel()
        rows = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        added = None
        if residual is not None:
            added = residual.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        out = added if onto and added is not None else torch.empty(x.shape[0], *size, self.bias.numel())
        for i in range(len(x)):
            own = self.bias if bias is None else bias[i].contiguous()
            picture, plus = before.picture(i), None if added is None else added[i]
            pointers = (rows[i], kernel, own, plus, picture.scale, picture.shift, out[i])
            flags = [int(flag) for flag in (picture.silu, relu, picture.double)]
            shape = (*size, x.shape[1], self.bias.numel())
            self._run(Convolution(*map(at, pointers), *shape, *flags, torch.get_num_threads()))
        return out.permute(0, 3, 1, 2)

    def _directly(
        self, x: Tensor, before: Before, bias: Tensor | None, residual: Tensor | None, relu: bool
    ) -> Tensor:
        """The same for a small picture, one step after the other."""
        if before.scale is not None and before.shift is not None:
            x = x * before.scale[..., None, None] + before.shift[..., None, None]
        x = nn.functional.silu(x) if before.silu else x
        x = self.direct(nn.functional.interpolate(x, scale_factor=2.0) if before.double else x)
        x = x if bias is None else x + (bias - self.bias)[..., None, None]
        x = x if residual is None else x + residual
        return x.relu() if relu else x

    def _run(self, convolution: Convolution) -> None:
        room = self.workspace.get("room", library().osdface_room(ctypes.byref(convolution)))
        library().osdface_convolve(ctypes.byref(convolution), at(room))
