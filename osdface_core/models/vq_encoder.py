"""VQ encoder: residual blocks, one attention level, five stride-2 steps (paper §3.2).

Same family as VQGAN's encoder. Module names follow the released checkpoint, so that its tensors load
without renaming.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VREConfig
from ..errors import CheckpointError

MOST_CELLS = 128  # side of a feature map with attention, whose time grows with the fourth power of it


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """norm - SiLU - conv3, twice, plus the input (through a 1x1 convolution where channels change)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the cells of a feature map.

    `norm2` exists in the released weights and takes no part in self-attention; it is kept so that the
    layout stays complete.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, groups)
        self.norm2 = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)
        self.norm2.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape_as(x)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Pad right and bottom by one, then a stride-2 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """One resolution of the encoder: residual blocks, each followed by attention where the level has it."""

    def __init__(
        self, in_channels: int, out_channels: int, *, cfg: VREConfig, attend: bool, last: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (cfg.res_blocks - 1)
        self.block = nn.ModuleList(ResBlock(w, out_channels, cfg.norm_groups) for w in widths)
        count = cfg.res_blocks if attend else 0
        self.attn = nn.ModuleList(AttentionBlock(out_channels, cfg.norm_groups) for _ in range(count))
        self.downsample = None if last else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x if self.downsample is None else self.downsample(x)


class MiddleBlock(nn.Module):
    """residual - attention - residual at the smallest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttentionBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image to feature map.

    Input (B, 3, R, R) in `VREConfig.input_range`; output (B, z_channels, R/32, R/32) for six levels.
    """

    def __init__(self, cfg: VREConfig) -> None:
        super().__init__()
        widths = [cfg.base_channels * m for m in cfg.channel_multipliers]
        sides = [cfg.resolution >> i for i in range(len(widths))]
        if sides[-1] > MOST_CELLS:
            raise CheckpointError(
                f"vre: its middle attends to {sides[-1]}x{sides[-1]} cells, expected at most {MOST_CELLS}: "
                "more channel_multipliers or a smaller resolution"
            )
        self.conv_in = nn.Conv2d(3, cfg.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                before,
                after,
                cfg=cfg,
                attend=side in cfg.attention_resolutions,
                last=i == len(widths) - 1,
            )
            for i, (before, after, side) in enumerate(
                zip([cfg.base_channels, *widths[:-1]], widths, sides, strict=True)
            )
        )
        self.mid = MiddleBlock(widths[-1], cfg.norm_groups)
        self.norm_out = group_norm(widths[-1], cfg.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], cfg.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))
