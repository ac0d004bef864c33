"""diffusers' blocks with their norms, activations and additions worked into Winograd convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .layers import Layers
from .winograd import Before, WinogradConv


def normalising(x: Tensor, norm: nn.GroupNorm, conv: WinogradConv) -> Before:
    """Group normalisation as one scale and shift per channel, followed by SiLU.

    Args:
        x: (B, C, H, W), float32, channels-last.
        conv: for which it is; it knows a way to sum.
    """
    channels = x.shape[1]
    sums = torch.stack([conv.sums(picture) for picture in x.permute(0, 2, 3, 1).flatten(1, 2)])
    cells = x.shape[2] * x.shape[3] * (channels // norm.num_groups)
    mean, square = (sums.unflatten(2, (norm.num_groups, -1)).sum(-1) / cells).unbind(1)
    scale = (square - mean * mean).clamp_min(0.0).add(norm.eps).rsqrt()
    scale, mean = (v.repeat_interleave(channels // norm.num_groups, 1) for v in (scale, mean))
    weight = norm.weight.double() * scale
    return Before(weight.float(), (norm.bias.double() - mean * weight).float(), silu=True)


class FusedResnet(nn.Module):
    """Stands in for diffusers' ResnetBlock2D: two passes over the picture instead of eight."""

    def __init__(self, block: Any, layers: Layers, last_use: bool = False) -> None:
        """`last_use`: nobody needs the block's input after it, so the result may take its memory."""
        super().__init__()
        self.last_use = last_use
        block.conv1, block.conv2 = layers.conv(block.conv1), layers.conv(block.conv2)
        self.block = block
        self.conv1 = layers.winograd(block.conv1)
        self.conv2 = layers.winograd(block.conv2)

    @staticmethod
    def suits(block: Any) -> bool:
        plain = block.upsample is None and block.downsample is None and not block.skip_time_act
        plain = plain and block.output_scale_factor == 1.0
        plain = plain and (block.time_emb_proj is None or block.time_embedding_norm == "default")
        plain = plain and isinstance(block.nonlinearity, nn.SiLU)
        return plain and WinogradConv.suits(block.conv1) and WinogradConv.suits(block.conv2)

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """(B, C, H, W) to (B, O, H, W); `temb` (B, T) is the time embedding."""
        x, block = input_tensor, self.block
        if not self.conv1.fits(*x.shape[-2:]):
            return block(x, temb)
        x = x.contiguous(memory_format=torch.channels_last)
        bias = None
        if temb is not None and block.time_emb_proj is not None:
            bias = self.conv1.bias + block.time_emb_proj(block.nonlinearity(temb))
        h = self.conv1(x, normalising(x, block.norm1, self.conv1), bias)
        before = normalising(h, block.norm2, self.conv2)
        if block.conv_shortcut is None:
            return self.conv2(h, before, residual=x, onto=self.last_use)
        return self.conv2(h, before, residual=block.conv_shortcut(x), onto=True)


class FusedUpsample(nn.Module):
    """Stands in for diffusers' Upsample2D: the enlarged picture never exists whole."""

    def __init__(self, block: Any, layers: Layers) -> None:
        super().__init__()
        block.conv = layers.conv(block.conv)
        self.block = block
        self.conv = layers.winograd(block.conv)

    @staticmethod
    def suits(block: Any) -> bool:
        plain = block.use_conv and not block.use_conv_transpose and block.interpolate and block.norm is None
        return plain and block.name == "conv" and WinogradConv.suits(block.conv)

    def forward(self, hidden_states: Tensor, output_size: Any = None, *_: Any, **__: Any) -> Tensor:
        """(B, C, H, W) to (B, O, 2H, 2W)."""
        height, width = (2 * side for side in hidden_states.shape[-2:])
        if output_size is not None or not self.conv.fits(height, width):
            return self.block(hidden_states, output_size)
        return self.conv(hidden_states, Before(double=True))


class FusedTinyBlock(nn.Module):
    """Stands in for diffusers' AutoencoderTinyBlock: convolution and ReLU, thrice, plus the input."""

    def __init__(self, block: Any, layers: Layers) -> None:
        super().__init__()
        for i in (0, 2, 4):
            block.conv[i] = layers.conv(block.conv[i])
        self.block = block
        self.first, self.second, self.third = (layers.winograd(block.conv[i]) for i in (0, 2, 4))

    @staticmethod
    def suits(block: Any) -> bool:
        layers = list(block.conv)
        convs, between = layers[::2], layers[1::2]
        plain = len(layers) == 5 and all(isinstance(a, nn.ReLU) for a in (*between, block.fuse))
        return plain and all(isinstance(c, nn.Conv2d) and WinogradConv.suits(c) for c in convs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H, W)."""
        if not self.first.fits(*x.shape[-2:]):
            return self.block(x)
        x = x.contiguous(memory_format=torch.channels_last)
        h = self.second(self.first(x, relu=True), relu=True)
        return self.third(h, residual=self.block.skip(x), relu=True)
