"""Layers of the engine `native` in half precision, for CPUs that multiply it faster (AVX512-FP16).

Weights and inputs are float16, and so are sums of a few dozen products; those sums add up in float32, and so
is everything between layers. Weights in bfloat16 become float16 once, which loses nothing that matters: only
numbers below 6e-5 lose digits, and layers with numbers above float16's range stay as they are.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from .attention import HalfAttention
from .compiled import at, library, sizes
from .native import CHANNELS, Convolution, NativeConv, NativeLayers
from .packed import PackedConv
from .winograd import WinogradConv, Workspace


class _Multiplication(ctypes.Structure):
    """`struct Multiplication` of cpp/multiply.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weights", "bias", "out")),
        *((name, ctypes.c_int64) for name in ("height", "width", "inputs", "down", "across", "outputs")),
        *((name, ctypes.c_int64) for name in ("side", "stride", "padding")),
    )


def pack(weight: Tensor) -> Tensor:
    """(O, C, ...) to float16 (O / 32, taps, C / 2, 32, 2): pairs of inputs beside each other."""
    outputs, inputs = weight.shape[:2]
    pairs = weight.detach().half().reshape(outputs // CHANNELS, CHANNELS, inputs // 2, 2, -1)
    return pairs.permute(0, 4, 2, 1, 3).contiguous()


def _take_over(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The layer's weights, packed in the memory where they lay; the layer has none any more."""
    weight = layer.weight.detach()
    same = weight.as_strided((weight.numel(),), (1,)).view(torch.float16)
    packed = pack(weight)
    layer.weight = nn.Parameter(weight.new_empty(0, dtype=torch.float32), requires_grad=False)
    return same.copy_(packed.flatten()).view(packed.shape)


def unpack(packed: Tensor) -> Tensor:
    """(O / 32, taps, C / 2, 32, 2) to (O, C, taps)."""
    return packed.permute(0, 3, 2, 4, 1).flatten(0, 1).flatten(1, 2)


def in_range(weight: Tensor) -> bool:
    """Whether the layer's widths suit the compiled code and its weights float16."""
    whole = weight.shape[0] % CHANNELS == 0 and weight.shape[1] % CHANNELS == 0
    return whole and bool(weight.detach().abs().max() < torch.finfo(torch.float16).max)


def _multiply(call: _Multiplication, workspace: Workspace) -> None:
    count = library().osdface_half_multiply_room(ctypes.byref(call))
    room = workspace.get("half", -(-count // 2))
    library().osdface_half_multiply(ctypes.byref(call), at(room))


class HalfLinear(nn.Module):
    """Stands in for a Linear: (…, K) float32 to (…, N) float32."""

    packed: Tensor

    def __init__(self, layer: nn.Linear, workspace: Workspace) -> None:
        super().__init__()
        # A buffer: diffusers asks parameters which precision to compute in.
        self.register_buffer("packed", _take_over(layer), persistent=False)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.inputs, self.outputs, self.workspace = layer.in_features, layer.out_features, workspace

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows = x.numel() // self.inputs
        out = torch.empty(*x.shape[:-1], self.outputs)
        pointers = (at(v) for v in (x, self.packed, self.bias, out))
        shape = (1, rows, self.inputs, 1, rows, self.outputs, 1, 1, 0)
        _multiply(_Multiplication(*pointers, *shape), self.workspace)
        return out


class HalfConv(PackedConv):
    """Stands in for a Conv2d: (B, C, H, W) float32 to (B, O, H', W') float32, channels-last."""

    taps: Tensor

    def __init__(self, conv: nn.Conv2d, workspace: Workspace) -> None:
        super().__init__(conv)
        self.register_buffer("taps", _take_over(conv), persistent=False)
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.workspace = workspace

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        (tall, wide), paddings = conv.kernel_size, set(conv.padding)
        plain = tall == wide and len(set(conv.stride)) == 1 and conv.dilation == (1, 1)
        return plain and PackedConv.suits(conv) and len(paddings) == 1 and in_range(conv.weight)

    @property
    def saves_memory(self) -> bool:
        return True

    def weight(self) -> Tensor:
        return unpack(self.taps).unflatten(2, self.conv.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        (side, _), (stride, _), padding = self.conv.kernel_size, self.conv.stride, int(self.conv.padding[0])
        pictures, (height, width) = x.permute(0, 2, 3, 1).contiguous(), x.shape[-2:]
        down, across = ((v + 2 * padding - side) // stride + 1 for v in (height, width))
        out = torch.empty(len(x), down, across, self.conv.out_channels)
        shape = (height, width, x.shape[1], down, across, self.conv.out_channels, side, stride, padding)
        for picture, result in zip(pictures, out, strict=True):
            pointers = (at(v) for v in (picture, self.taps, self.bias, result))
            _multiply(_Multiplication(*pointers, *shape), self.workspace)
        return out.permute(0, 3, 1, 2)


class HalfWinograd(NativeConv):
    """Winograd's F(4x4, 3x3) on a HalfConv's weights; its points keep the rounding small."""

    direct: HalfConv

    def kernel(self) -> Tensor:
        """Made anew at every pass: twice the weights' room in float32, and soon made."""
        inputs, outputs = self.direct.conv.in_channels, self.direct.conv.out_channels
        count = library().osdface_half_places() * inputs * outputs
        kernel = self.workspace.get("kernel", count // 2)
        library().osdface_half_kernel(at(self.direct.taps), at(kernel), *sizes(inputs, outputs))
        return kernel

    def call(self, convolution: Convolution) -> None:
        room = self.workspace.get("native", library().osdface_half_room(ctypes.byref(convolution)))
        library().osdface_half_convolve(ctypes.byref(convolution), at(room))


class HalfLayers(NativeLayers):
    """Stand-ins of the engine `native` for weights in half precision."""

    worthwhile = CHANNELS * CHANNELS

    def conv(self, conv: nn.Conv2d) -> PackedConv:
        return HalfConv(conv, self.workspace) if HalfConv.suits(conv) else super().conv(conv)

    def linear(self, layer: nn.Linear) -> nn.Module:
        return HalfLinear(layer, self.workspace) if in_range(layer.weight) else super().linear(layer)

    def winograd(self, conv: PackedConv) -> WinogradConv:
        return HalfWinograd(conv, self.workspace) if isinstance(conv, HalfConv) else super().winograd(conv)

    def attention(self, attention: Any) -> None:
        if HalfAttention.suits(attention):
            attention.set_processor(HalfAttention(attention.processor, self.workspace))
