"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3), stripe by stripe.

Each 6x6 window of the input gives a 4x4 block of the output through 36 products instead of 144 (Lavin & Gray,
arXiv 1509.09308, §4.2-4.3). Rounding is some four times the direct method's and stays below 1e-4 of the
output's spread.
A picture is worked off in stripes that fit the CPU's cache; what comes before the convolution (scale, shift,
SiLU, nearest upsampling) happens on the stripe as well, so no whole picture is written and read for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .arena import give_back
from .packed import PackedConv

TILE = 4  # side of an output block [px]
WINDOW = 6  # side of the input window it needs
TILES_AT_ONCE = 128  # rows of each matrix product: fewer starve it, more leave the cache
CELLS_AT_ONCE = 4096  # pixels of a picture whose sums are taken together: they fit the cache

# Transforms for the points 0, 1, -1, 2, -2, infinity (same source, §4.3).
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def _both_axes(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one).float()


def transform_kernel(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) to (36, O, C), float32."""
    taps = weight.detach().permute(2, 3, 0, 1).flatten(2).reshape(9, -1).float()
    return torch.mm(_both_axes(KERNEL), taps).view(WINDOW * WINDOW, *weight.shape[:2])


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
        """The same for one picture of the batch."""
        if self.scale is None or self.shift is None:
            return self
        return replace(self, scale=self.scale[index], shift=self.shift[index])


@dataclass(frozen=True)
class After:
    """What happens to one picture's output: bias (O,), residual (H, W, O), ReLU."""

    bias: Tensor
    residual: Tensor | None
    relu: bool


class Workspace:
    """Buffers that one convolution after the other uses; they grow as needed."""

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """Uninitialised float32 of that shape; the same memory for the same name."""
        count = 1
        for side in shape:
            count *= side
        held = self.parts.get(name)
        if held is None or held.numel() < count:
            held = self.parts[name] = torch.empty(count)
        return held[:count].view(shape)

    def release(self) -> None:
        """Give all of it back to the system, with what else is free."""
        self.parts.clear()
        give_back()


class WinogradConv(nn.Module):
    """Stands in for a 3x3 convolution of stride 1 and padding 1, float32 on the CPU, without gradient."""

    def __init__(self, conv: PackedConv, workspace: Workspace) -> None:
        super().__init__()
        self.direct = conv
        self._kernel: Tensor | None = None
        own = conv.conv.bias
        self.bias = torch.zeros(conv.conv.out_channels) if own is None else own.detach().float().clone()
        self.workspace = workspace
        self.input, self.output = _both_axes(INPUT), _both_axes(OUTPUT)

    def kernel(self) -> Tensor:
        """The transformed weights, four times their room or more: kept from the first use on, unless those
        are in half precision to save memory."""
        if self._kernel is not None:
            return self._kernel
        kernel = self.transform(self.direct.weight())
        if not self.direct.saves_memory:
            self._kernel = kernel
        return kernel

    @staticmethod
    def sums(picture: Tensor) -> Tensor:
        """Sums and sums of squares of each channel: (pixels, C) to (2, C), float64."""
        found = torch.zeros(2, picture.shape[1], dtype=torch.float64)
        for part in picture.split(CELLS_AT_ONCE):
            ones = part.new_ones(1, len(part))
            found[0] += torch.mm(ones, part)[0]
            found[1] += torch.mm(ones, part * part)[0]
        return found

    def transform(self, weight: Tensor) -> Tensor:
        """(O, C, 3, 3) to (36, O, C), float32."""
        return transform_kernel(weight)

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether the layer is of the kind (no subclass, no adapter around it), and wide enough to gain."""
        if type(conv) is not nn.Conv2d:
            return False
        plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
        plain = plain and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
        return plain and min(conv.in_channels, conv.out_channels) >= 64

    def fits(self, height: int, width: int) -> bool:
        """Whether an output of that size is whole blocks, and enough of them to gain."""
        return height % TILE == 0 and width % TILE == 0 and height * width >= 1024

    def forward(
        self,
        x: Tensor,
        before: Before | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
        onto: bool = False,
    ) -> Tensor:
        """(B, C, H, W) to (B, O, H, W), channels-last; twice the sides with `before.double`.

        Args:
            bias: (B, O) instead of the layer's own.
            residual: like the output, added to it.
            relu: ReLU at the very end.
            onto: overwrite `residual` (channels-last) with the result instead of taking more memory.
        """
        before, kernel = before or Before(), self.kernel()
        factor = 2 if before.double else 1
        size = (x.shape[2] * factor, x.shape[3] * factor)
        rows = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        added = None if residual is None else residual.permute(0, 2, 3, 1)
        out = added if onto and added is not None else torch.empty(x.shape[0], *size, self.bias.numel())
        for i in range(len(x)):
            own = self.bias if bias is None else bias[i]
            after = After(own, None if added is None else added[i], relu)
            self._picture(rows[i], out[i], kernel, before.picture(i), after)
        return out.permute(0, 3, 1, 2)

    def _picture(self, x: Tensor, out: Tensor, kernel: Tensor, before: Before, after: After) -> None:
        """(H, W, C) into (H', W', O)."""
        height, width, _ = out.shape
        across = width // TILE
        step = max(1, TILES_AT_ONCE // across)
        for first in range(0, height // TILE, step):
            count = min(step, height // TILE - first)
            top, bottom = first * TILE, (first + count) * TILE
            stripe = self._stripe(x, top - 1, bottom + 1, height, width, before)
            block = self._products(stripe, kernel, count, across)
            target = out[top:bottom].view(count, TILE, across, TILE, -1)
            own = block.permute(2, 0, 3, 1, 4)
            if after.residual is None:
                torch.add(own, after.bias, out=target)
            else:
                added = after.residual[top:bottom].view_as(target)
                torch.add(added, own, out=target).add_(after.bias)
            if after.relu:
                out[top:bottom].relu_()

    def _stripe(self, x: Tensor, top: int, bottom: int, height: int, width: int, before: Before) -> Tensor:
        """Rows top..bottom of the convolution's padded input, (rows, width + 2, C)."""
        stripe = self.workspace.get("stripe", bottom - top, width + 2, x.shape[-1])
        stripe[:, 0] = 0.0
        stripe[:, -1] = 0.0
        if top < 0:
            stripe[0] = 0.0
        if bottom > height:
            stripe[-1] = 0.0
        low, high = max(top, 0), min(bottom, height)
        inner = stripe[low - top : high - top, 1:-1]
        if before.double:
            self._doubled(x, low, high, inner)
        elif before.scale is None or before.shift is None:
            inner.copy_(x[low:high])
        else:
            torch.addcmul(before.shift, x[low:high], before.scale, out=inner)
        if before.silu:
            nn.functional.silu(inner, inplace=True)
        return stripe

    @staticmethod
    def _doubled(x: Tensor, low: int, high: int, inner: Tensor) -> None:
        """Nearest upsampling by two of rows low..high (counted after it)."""
        rows = torch.arange(low, high) // 2
        wide = inner.unflatten(1, (-1, 2))
        wide.copy_(x[rows].unsqueeze(2).expand_as(wide))

    def _products(self, stripe: Tensor, kernel: Tensor, count: int, across: int) -> Tensor:
        """Windows, 36 matrix products, blocks: (4, 4, count, across, O)."""
        outputs, channels = kernel.shape[1:]
        tiles, places = count * across, WINDOW * WINDOW
        row, column, _ = stripe.stride()
        windows = stripe.as_strided(
            (WINDOW, WINDOW, count, across, channels), (row, column, TILE * row, TILE * column, 1)
        )
        # Two buffers taking turns: what was just written is still in the cache when it is overwritten.
        get = self.workspace.get
        gathered = get("even", places, tiles * channels)
        gathered.view(windows.shape).copy_(windows)
        spread = torch.mm(self.input, gathered, out=get("odd", places, tiles * channels))
        product = get("even", places, tiles, outputs)
        torch.bmm(spread.view(places, tiles, channels), kernel.transpose(1, 2), out=product)
        block = torch.mm(self.output, product.view(places, -1), out=get("odd", TILE * TILE, tiles * outputs))
        return block.view(TILE, TILE, count, across, outputs)
