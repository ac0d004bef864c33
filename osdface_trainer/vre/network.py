"""The VQ autoencoder of stage 1: the VRE and a decoder, which proves that the codebook holds the face.

Module names follow the released checkpoint.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from osdface_core.config import VREConfig
from osdface_core.models.vq_encoder import AttentionBlock, MiddleBlock, ResBlock, group_norm
from osdface_core.models.vre import VRE


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UpLevel(nn.Module):
    """One resolution of the decoder: one residual block more than the encoder's level."""

    def __init__(
        self, in_channels: int, out_channels: int, *, cfg: VREConfig, attend: bool, last: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * cfg.res_blocks
        self.block = nn.ModuleList(ResBlock(w, out_channels, cfg.norm_groups) for w in widths)
        count = cfg.res_blocks + 1 if attend else 0
        self.attn = nn.ModuleList(AttentionBlock(out_channels, cfg.norm_groups) for _ in range(count))
        self.upsample = None if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x if self.upsample is None else self.upsample(x)


class Decoder(nn.Module):
    """Feature map to image: (B, z_channels, h, w) to (B, 3, R, R), no output activation."""

    def __init__(self, cfg: VREConfig) -> None:
        super().__init__()
        widths = [cfg.base_channels * m for m in cfg.channel_multipliers]
        sides = [cfg.resolution >> i for i in range(len(widths))]
        self.conv_in = nn.Conv2d(cfg.z_channels, widths[-1], 3, padding=1)
        self.mid = MiddleBlock(widths[-1], cfg.norm_groups)
        # `up.i` works at level i's resolution, so the forward pass walks the list backwards.
        self.up = nn.ModuleList(
            UpLevel(
                widths[min(i + 1, len(widths) - 1)],
                widths[i],
                cfg=cfg,
                attend=sides[i] in cfg.attention_resolutions,
                last=i == 0,
            )
            for i in range(len(widths))
        )
        self.norm_out = group_norm(widths[0], cfg.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQAutoencoder(VRE):
    """VRE plus the decoder: what stage 1 trains."""

    def __init__(self, cfg: VREConfig) -> None:
        super().__init__(cfg)
        self.post_quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 1)
        self.decoder = Decoder(cfg)
