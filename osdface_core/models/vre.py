"""VRE: the low-quality face as 77 visual tokens, and the projection to the prompt (paper §3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ProjectionConfig, VREConfig
from ..errors import ConfigError
from .codebook import Codebook, Tokens, lookup, select_tokens
from .vq_encoder import Encoder


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run the block in float32, whatever surrounds it: no autocast, no TF32.

    Half precision moves most of the 77 tokens; TF32, cuDNN's default for convolutions, moves some.
    """
    with ExitStack() as stack:
        if device.type in {"cpu", "cuda", "mps", "xpu"}:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False))
        yield


class VRE(nn.Module):
    """VQ encoder and codebook. At the released size 173 tensors, 28.628 M convolution parameters."""

    def __init__(self, cfg: VREConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 1)
        self.quantize = Codebook(cfg.codebook_size, cfg.z_channels)

    def prepare(self, signed: Tensor) -> Tensor:
        """Squash (B, 3, H, W) in [-1, 1] to (B, 3, R, R) in `cfg.input_range` (bilinear)."""
        side = self.cfg.resolution
        if signed.shape[-2:] != (side, side):
            signed = F.interpolate(signed, size=(side, side), mode="bilinear", align_corners=False)
        low, high = self.cfg.input_range
        return signed * ((high - low) / 2.0) + (high + low) / 2.0

    def features(self, signed: Tensor) -> Tensor:
        """Compute features before quantisation, (B, D, h, w), of faces in [-1, 1]."""
        return self.quant_conv(self.encoder(self.prepare(signed)))

    def tokens(self, signed: Tensor) -> Tokens:
        """Pick the 77 tokens of each face (B, 3, H, W) in [-1, 1]: codes and positions, (B, 77) each."""
        with full_precision(signed.device):
            features = self.features(signed.float())
            return select_tokens(features, self.quantize.embedding.weight, self.cfg.tokens)

    def codes(self, tokens: Tokens) -> Tensor:
        """Look up the codes of tokens: (B, 77, D), zero rows where fewer occur."""
        return lookup(tokens.codes, self.quantize.embedding.weight)

    def forward(self, signed: Tensor) -> Tensor:
        """Encode faces (B, 3, H, W) in [-1, 1] as codes (B, 77, D), nearest first."""
        return self.codes(self.tokens(signed))


class Projection(nn.Module):
    """Embedding change: pointwise D -> hidden -> prompt width, SiLU after both (released code).

    With `cfg.learned` it holds that many vectors instead and answers with them whatever the codes are: what
    is left of the method without its visual prompt (paper Tab. 4). With `cfg.positions` the vector of each
    token's position is added, so that the prompt says where in the face a code was seen.
    """

    positions: nn.Parameter | None

    def __init__(self, codes: int, cfg: ProjectionConfig) -> None:
        super().__init__()
        self.learned = cfg.learned > 0
        if self.learned:
            self.vectors = nn.Parameter(torch.randn(cfg.learned, cfg.out))
            return
        self.conv1 = nn.Conv1d(codes, cfg.hidden, 1)
        self.conv2 = nn.Conv1d(cfg.hidden, cfg.out, 1)
        self.positions = nn.Parameter(grid_code(cfg.positions, cfg.out)) if cfg.positions else None

    def forward(self, codes: Tensor, positions: Tensor | None = None) -> Tensor:
        """Project codes (B, 77, D), found at `positions` (B, 77), to the prompt (B, 77, out).

        A token whose position is -1 (there is none), or all of them without `positions`, carry no position.
        """
        if self.learned:
            return self.vectors.expand(codes.shape[0], -1, -1)
        x = F.silu(self.conv1(codes.transpose(1, 2)))
        prompt = F.silu(self.conv2(x)).transpose(1, 2)
        if self.positions is None or positions is None:
            return prompt
        return prompt + lookup(positions, self.positions)


def grid_code(positions: int, width: int) -> Tensor:
    """Return sines and cosines of row and column: (positions, width), where position codes start.

    Args:
        positions: cells of a square grid, row by row.
        width: a multiple of 4.
    """
    side = round(positions**0.5)
    if side * side != positions or width % 4:
        raise ConfigError(
            f"projection: {positions} positions and width {width}, expected a square and a multiple of 4"
        )
    frequencies = 0.01 ** (torch.arange(width // 4) / (width // 4))
    cells = torch.arange(side, dtype=torch.float32)
    rows, columns = (
        axis.flatten()[:, None] * frequencies for axis in torch.meshgrid(cells, cells, indexing="ij")
    )
    return torch.cat([wave(axis) for axis in (rows, columns) for wave in (torch.sin, torch.cos)], dim=1)


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
            tokens = self.vre.tokens(signed)
        return self.project(tokens)

    def project(self, tokens: Tokens) -> Tensor:
        """Project tokens to the prompt (B, 77, D)."""
        return self.projection(self.vre.codes(tokens), tokens.positions)
