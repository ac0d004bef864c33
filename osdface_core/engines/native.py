"""The engine `native`: `fast` with its convolutions in C++, compiled once per machine."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .compiled import at, library, sizes
from .layers import Layers
from .packed import PackedConv
from .winograd import After, Before, WinogradConv

CHANNELS = 32  # widths must be multiples of it
CELLS_AT_ONCE = 256  # pixels whose sums are taken in float32: few enough for its digits and the cache
MANY = 4096  # pixels for which transforming half-precision weights at every pass pays


class Convolution(ctypes.Structure):
    """`struct Convolution` of cpp/winograd.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "kernel", "bias", "residual", "scale", "shift", "out")),
        *((name, ctypes.c_int64) for name in ("height", "width", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("silu", "relu", "twice")),
    )


class NativeConv(WinogradConv):
    """Winograd's F(6x6, 3x3): 1.8 products per output pixel and channel pair instead of fast's 2.25."""

    def fits(self, height: int, width: int) -> bool:
        return super().fits(height, width) and (height * width >= MANY or not self.direct.saves_memory)

    @staticmethod
    def sums(picture: Tensor) -> Tensor:
        (pixels, channels), cells = picture.shape, CELLS_AT_ONCE
        found = torch.empty(-(-pixels // cells), 2, channels, dtype=torch.float64)
        library().osdface_sums(at(picture), at(found), *sizes(pixels, channels, cells))
        return found.sum(0)

    def transform(self, weight: Tensor) -> Tensor:
        """(O, C, 3, 3) to the compiled code's own order, float32."""
        outputs, inputs = weight.shape[:2]
        taps = weight.detach().permute(2, 3, 1, 0).contiguous().float()
        count = library().osdface_places() * inputs * outputs
        kernel = self.workspace.get("kernel", count) if self.direct.saves_memory else torch.empty(count)
        library().osdface_kernel(at(taps), at(kernel), *sizes(inputs, outputs))
        return kernel

    def _picture(self, x: Tensor, out: Tensor, kernel: Tensor, before: Before, after: After) -> None:
        (height, width, outputs), inputs = out.shape, x.shape[2]
        # Held by name, so that no copy goes before the call.
        inner = [None if v is None else v.contiguous() for v in (before.scale, before.shift)]
        x, bias = x.contiguous(), after.bias.contiguous()
        pointers = [at(v) for v in (x, kernel, bias, after.residual, *inner, out)]
        flags = [int(v) for v in (before.silu, after.relu, before.double)]
        self.call(Convolution(*pointers, height, width, inputs, outputs, *flags))

    def call(self, convolution: Convolution) -> None:
        """The compiled code itself."""
        room = self.workspace.get("native", library().osdface_room(ctypes.byref(convolution)))
        library().osdface_convolve(ctypes.byref(convolution), at(room))


class NativeLayers(Layers):
    """Stand-ins of the engine `native` for float32, and for half precision on CPUs that lack it."""

    def winograd(self, conv: PackedConv) -> WinogradConv:
        """In C++ where the layer's widths allow it, else as `fast` does it."""
        layer = conv.conv
        whole = layer.in_channels % CHANNELS == 0 and layer.out_channels % CHANNELS == 0
        return (NativeConv if whole else WinogradConv)(conv, self.workspace)
