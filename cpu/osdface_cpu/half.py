"""Layers in half precision, for CPUs that multiply it faster (AVX512-FP16).

Weights and inputs are float16, and so are sums of a few dozen products; those sums add up in float32, and so
is everything between layers. Weights in bfloat16 become float16 once, which loses nothing that matters: only
numbers below 6e-5 lose digits, and layers with numbers above float16's range are not multiplied so.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from .attention import HalfAttention
from .convolution import CHANNELS, Convolution, WinogradConv
from .layers import Layers
from .library import Workspace, at, library, sizes
from .packed import PackedConv
from .weights import LentWeight

MANY = 4096  # pixels for which transforming the weights at every pass pays


class _Multiplication(ctypes.Structure):
    """`struct Multiplication` of cpp/multiply.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weights", "bias", "out")),
        *((name, ctypes.c_int64) for name in ("height", "width", "inputs", "down", "across", "outputs")),
        *((name, ctypes.c_int64) for name in ("side", "stride", "padding", "threads")),
    )


def pack(weight: Tensor) -> Tensor:
    """Return (O, C, ...) as float16 (O / 32, taps, C / 2, 32, 2): pairs of inputs beside each other."""
    outputs, inputs = weight.shape[:2]
    pairs = weight.detach().half().reshape(outputs // CHANNELS, CHANNELS, inputs // 2, 2, -1)
    return pairs.permute(0, 4, 2, 1, 3).contiguous()


def unpack(packed: Tensor) -> Tensor:
    """Return (O / 32, taps, C / 2, 32, 2) as (O, C, taps)."""
    return packed.permute(0, 3, 2, 4, 1).flatten(0, 1).flatten(1, 2)


def in_range(weight: Tensor) -> bool:
    """Return whether the layer's widths suit the compiled code and its weights, if not float32, float16."""
    whole = weight.shape[0] % CHANNELS == 0 and weight.shape[1] % CHANNELS == 0
    return (
        whole
        and weight.dtype != torch.float32
        and bool(weight.detach().abs().max() < torch.finfo(torch.float16).max)
    )


def _multiply(call: _Multiplication, workspace: Workspace) -> None:
    count = library().osdface_half_multiply_room(ctypes.byref(call))
    room = workspace.get("half", -(-count // 2))
    library().osdface_half_multiply(ctypes.byref(call), at(room))


class HalfLinear(nn.Module):
    """Stands in for a Linear: (…, K) float32 to (…, N) float32."""

    def __init__(self, layer: nn.Linear, workspace: Workspace) -> None:
        super().__init__()
        self.weight = LentWeight(layer.weight, unpack)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.inputs, self.outputs, self.workspace = layer.in_features, layer.out_features, workspace

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, K) to (…, N)."""
        x = x.contiguous()
        rows = x.numel() // self.inputs
        out = torch.empty(*x.shape[:-1], self.outputs)
        pointers = (at(v) for v in (x, self.weight.packed(pack), self.bias, out))
        shape = (1, rows, self.inputs, 1, rows, self.outputs, 1, 1, 0, torch.get_num_threads())
        _multiply(_Multiplication(*pointers, *shape), self.workspace)
        return out


class HalfConv(PackedConv):
    """Stands in for a Conv2d: (B, C, H, W) float32 to (B, O, H', W') float32, channels-last."""

    def __init__(self, conv: nn.Conv2d, workspace: Workspace) -> None:
        super().__init__(conv)
        self.weight = LentWeight(conv.weight, unpack)
        self.bias = self.conv.bias
        self.workspace = workspace

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Return whether the compiled code has a layer of that kind."""
        (tall, wide), paddings = conv.kernel_size, set(conv.padding)
        plain = tall == wide and len(set(conv.stride)) == 1 and conv.dilation == (1, 1)
        return plain and PackedConv.suits(conv) and len(paddings) == 1 and in_range(conv.weight)

    def taps(self) -> Tensor:
        """Return the packed weights."""
        return self.weight.packed(pack)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W'), channels-last."""
        (side, _), (stride, _), padding = self.conv.kernel_size, self.conv.stride, int(self.conv.padding[0])
        pictures, (height, width) = x.permute(0, 2, 3, 1).contiguous(), x.shape[-2:]
        down, across = ((v + 2 * padding - side) // stride + 1 for v in (height, width))
        out = torch.empty(len(x), down, across, self.conv.out_channels)
        shape = (height, width, x.shape[1], down, across, self.conv.out_channels)
        window, taps = (side, stride, padding, torch.get_num_threads()), self.taps()
        for picture, result in zip(pictures, out, strict=True):
            pointers = (at(v) for v in (picture, taps, self.bias, result))
            _multiply(_Multiplication(*pointers, *shape, *window), self.workspace)
        return out.permute(0, 3, 1, 2)


class HalfWinograd(WinogradConv):
    """Winograd's F(4x4, 3x3) on a HalfConv's weights; its points keep the rounding small."""

    direct: HalfConv

    def fits(self, height: int, width: int) -> bool:
        """Return whether an output of that size is large enough to gain."""
        return height * width >= MANY

    def kernel(self) -> Tensor:
        """Return the transformed weights, made anew at every pass: twice the room, and soon made."""
        inputs, outputs = self.direct.conv.in_channels, self.direct.conv.out_channels
        kernel = self.workspace.get("kernel", library().osdface_half_places() * inputs * outputs // 2)
        counts = sizes(inputs, outputs, torch.get_num_threads())
        library().osdface_half_kernel(at(self.direct.taps()), at(kernel), *counts)
        return kernel

    def _run(self, convolution: Convolution) -> None:
        room = self.workspace.get("room", library().osdface_half_room(ctypes.byref(convolution)))
        library().osdface_half_convolve(ctypes.byref(convolution), at(room))


class HalfLayers(Layers):
    """Stand-ins that multiply half precision; what they cannot take computes in float32."""

    def conv(self, conv: nn.Conv2d) -> nn.Module:
        """Return the stand-in for a layer that `PackedConv.suits`."""
        if not HalfConv.suits(conv):
            return super().conv(conv)
        direct = HalfConv(conv, self.workspace)
        return HalfWinograd(direct, self.workspace) if WinogradConv.suits(conv) else direct

    def linear(self, layer: nn.Linear) -> nn.Module:
        """Return the stand-in for a linear layer."""
        return HalfLinear(layer, self.workspace) if in_range(layer.weight) else super().linear(layer)

    def attention(self, attention: Any) -> None:
        """Put `HalfAttention` in the place of a copy's processor where it suits."""
        if HalfAttention.suits(attention):
            attention.processor = HalfAttention(attention.processor, self.workspace)
