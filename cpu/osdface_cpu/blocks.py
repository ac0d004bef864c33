"""diffusers' blocks with their norms, activations and additions worked into Winograd convolutions.

Each stands in for a block whose own convolutions are `WinogradConv` already, and leaves small pictures to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .convolution import Before, WinogradConv, channel_sums


def normalising(x: Tensor, norm: nn.GroupNorm) -> Before:
    """Return group normalisation as one scale and shift per channel, followed by SiLU.

    Args:
        x: (B, C, H, W), float32, channels-last.
    """
    channels = x.shape[1]
    sums = torch.stack([channel_sums(picture) for picture in x.permute(0, 2, 3, 1).flatten(1, 2)])
    cells = x.shape[2] * x.shape[3] * (channels // norm.num_groups)
    mean, square = (sums.unflatten(2, (norm.num_groups, -1)).sum(-1) / cells).unbind(1)
    scale = (square - mean * mean).clamp_min(0.0).add(norm.eps).rsqrt()
    scale, mean = (v.repeat_interleave(channels // norm.num_groups, 1) for v in (scale, mean))
    weight = norm.weight.double() * scale
    return Before(weight.float(), (norm.bias.double() - mean * weight).float(), silu=True)


class FusedResnet(nn.Module):
    """Stands in for diffusers' ResnetBlock2D: two passes over the picture instead of eight."""

    def __init__(self, block: Any, last_use: bool = False) -> None:
        """`last_use`: nobody needs the block's input after it, so the result may take its memory."""
        super().__init__()
        self.block, self.last_use = block, last_use

    @staticmethod
    def suits(block: Any) -> bool:
        """Return whether `block`, as diffusers made it, is of the usual kind."""
        plain = block.upsample is None and block.downsample is None and not block.skip_time_act
        plain = plain and block.output_scale_factor == 1.0
        plain = plain and (block.time_emb_proj is None or block.time_embedding_norm == "default")
        plain = plain and isinstance(block.nonlinearity, nn.SiLU)
        return plain and WinogradConv.suits(block.conv1) and WinogradConv.suits(block.conv2)

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """Map (B, C, H, W) to (B, O, H, W); `temb` (B, T) is the time embedding."""
        x, block = input_tensor, self.block
        if not block.conv1.fits(*x.shape[-2:]):
            return block(x, temb)
        x = x.contiguous(memory_format=torch.channels_last)
        bias = None
        if temb is not None and block.time_emb_proj is not None:
            bias = block.conv1.bias + block.time_emb_proj(block.nonlinearity(temb))
        h = block.conv1(x, normalising(x, block.norm1), bias)
        before = normalising(h, block.norm2)
        if block.conv_shortcut is None:
            return block.conv2(h, before, residual=x, onto=self.last_use)
        return block.conv2(h, before, residual=block.conv_shortcut(x), onto=True)


class FusedUpsample(nn.Module):
    """Stands in for diffusers' Upsample2D: the enlarged picture never exists whole."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def suits(block: Any) -> bool:
        """Return whether `block`, as diffusers made it, is of the usual kind."""
        plain = block.use_conv and not block.use_conv_transpose and block.interpolate and block.norm is None
        return plain and block.name == "conv" and WinogradConv.suits(block.conv)

    def forward(self, hidden_states: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        """Map (B, C, H, W) to (B, O, 2H, 2W)."""
        if output_size is not None:
            return self.block(hidden_states, output_size)
        return self.block.conv(hidden_states, Before(double=True))


class FusedTinyBlock(nn.Module):
    """Stands in for diffusers' AutoencoderTinyBlock: convolution and ReLU, thrice, plus the input."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def suits(block: Any) -> bool:
        """Return whether `block`, as diffusers made it, is of the usual kind."""
        layers = list(block.conv)
        convs, between = layers[::2], layers[1::2]
        plain = len(layers) == 5 and all(isinstance(a, nn.ReLU) for a in (*between, block.fuse))
        return plain and all(WinogradConv.suits(c) for c in convs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        first, second, third = self.block.conv[::2]
        h = second(first(x, relu=True), relu=True)
        return third(h, residual=self.block.skip(x), relu=True)
