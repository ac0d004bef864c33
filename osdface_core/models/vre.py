"""VRE: the low-quality face as 77 visual tokens, and the projection to the prompt (paper §3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ProjectionConfig, VREConfig
from .codebook import Codebook, lookup, select_tokens
from .vq_encoder import Encoder


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 inside, whatever surrounds it: no autocast, no TF32.

    Half precision moves most of the 77 tokens; TF32, cuDNN's default for convolutions, moves some.
    """
    with ExitStack() as stack:
        if device.type in {"cpu", "cuda", "mps", "xpu"}:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False))
        yield


class VRE(nn.Module):
    """VQ encoder + dictionary. At the released size 173 tensors, 28.628 M convolution parameters."""

    def __init__(self, cfg: VREConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 1)
        self.quantize = Codebook(cfg.codebook_size, cfg.z_channels)

    def prepare(self, signed: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 3, R, R) in `cfg.input_range`; squashes other sizes (bilinear)."""
        side = self.cfg.resolution
        if signed.shape[-2:] != (side, side):
            signed = F.interpolate(signed, size=(side, side), mode="bilinear", align_corners=False)
        low, high = self.cfg.input_range
        return signed * ((high - low) / 2.0) + (high + low) / 2.0

    def features(self, signed: Tensor) -> Tensor:
        """Tokens before quantisation, (B, D, h, w), from faces in [-1, 1]."""
        return self.quant_conv(self.encoder(self.prepare(signed)))

    def tokens(self, signed: Tensor) -> Tensor:
        """(B, 77) indices into the dictionary, int64, -1 where fewer codes occur."""
        with full_precision(signed.device):
            features = self.features(signed.float())
            return select_tokens(features, self.quantize.embedding.weight, self.cfg.tokens)

    def forward(self, signed: Tensor) -> Tensor:
        """(B, 77, D) codes, nearest first, zero rows where fewer occur."""
        return lookup(self.tokens(signed), self.quantize.embedding.weight)


class Projection(nn.Module):
    """Embedding change: pointwise D -> hidden -> prompt width, SiLU after both (released code).

    With `cfg.learned` it holds that many vectors instead and answers with them whatever the codes are: what
    is left of the method without its visual prompt (paper Tab. 4).
    """

    def __init__(self, codes: int, cfg: ProjectionConfig) -> None:
        super().__init__()
        self.learned = cfg.learned > 0
        if self.learned:
            self.vectors = nn.Parameter(torch.randn(cfg.learned, cfg.out))
            return
        self.conv1 = nn.Conv1d(codes, cfg.hidden, 1)
        self.conv2 = nn.Conv1d(cfg.hidden, cfg.out, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, 77, D) codes to (B, 77, out) prompt."""
        if self.learned:
            return self.vectors.expand(codes.shape[0], -1, -1)
        x = F.silu(self.conv1(codes.transpose(1, 2)))
        return F.silu(self.conv2(x)).transpose(1, 2)


class PromptEncoder(nn.Module):
    """Frozen VRE and projection: a face to its prompt (paper §3.2)."""

    def __init__(self, vre: VRE, projection: Projection) -> None:
        super().__init__()
        self.vre = vre.requires_grad_(False).eval()
        self.projection = projection

    def train(self, mode: bool = True) -> PromptEncoder:
        """Switch the projection; the VRE stays in eval mode."""
        super().train(mode)
        self.vre.eval()
        return self

    def forward(self, signed: Tensor) -> Tensor:
        """Encode (B, 3, H, W) in [-1, 1] as (B, 77, D), float32; a learned prompt needs no VRE."""
        if self.projection.learned:
            return self.projection(signed)
        with torch.no_grad():
            codes = self.vre(signed)
        return self.projection(codes)
