"""JPEG for batches: a tensor simulation with one quality per sample, and the real codec through Pillow.

The simulation follows baseline JPEG as libjpeg does it: integer YCbCr, 4:2:0 by 2×2 means, 8×8 DCT, Annex K
tables scaled by quality, true rounding, triangle upsampling of the chroma. Source: ITU-T T.81 and libjpeg's
quality rule.
"""

import io
import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# fmt: off
LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61,  12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,  14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,  24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,  72, 92, 95, 98, 112, 100, 103, 99,
)
CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99,  18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,  47, 66, 99, 99, 99, 99, 99, 99,
    *([99] * 32),
)
# fmt: on


@lru_cache(maxsize=8)
def _dct_matrix(device: torch.device) -> Tensor:
    """(64, 64): orthonormal two-dimensional DCT-II of a flattened 8×8 block."""
    rows = [[math.cos((2 * x + 1) * u * math.pi / 16) for x in range(8)] for u in range(8)]
    basis = torch.tensor(rows, dtype=torch.float64) * 0.5
    basis[0] *= math.sqrt(0.5)
    return torch.kron(basis, basis).to(device=device, dtype=torch.float32)


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> Tensor:
    return torch.tensor([LUMA, CHROMA], dtype=torch.float32, device=device)


def quantisation_tables(quality: Tensor) -> Tensor:
    """libjpeg's rule: (B,) qualities in 1..100 → (B, 2, 64) integer steps for luma and chroma, as floats."""
    scale = torch.where(quality < 50, torch.floor(5000 / quality.clamp_min(1)), 200 - 2 * quality)
    steps = torch.floor((_tables(quality.device)[None] * scale[:, None, None] + 50) / 100)
    return steps.clamp(1, 255)


def _blockwise(plane: Tensor, steps: Tensor) -> Tensor:
    """Quantise the DCT of every 8×8 block. plane: (B, C, H, W) in 0..255, steps: (B, 64)."""
    batch, channels, height, width = plane.shape
    blocks = plane.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    dct = _dct_matrix(plane.device)
    coefficients = (blocks.reshape(batch, -1, 64) - 128) @ dct.T
    steps = steps[:, None]
    levels = coefficients / steps
    blocks = (torch.trunc(levels + torch.sign(levels) * 0.5) * steps) @ dct  # halves go away from zero
    blocks = torch.round(blocks + 128).clamp_(0, 255)
    shape = (batch, channels, height // 8, width // 8, 8, 8)
    return blocks.view(shape).transpose(3, 4).reshape(batch, channels, height, width)


def simulate_jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress on the image's device, batched, not differentiable.

    Args:
        image: (B, 3, H, W) unit, H and W multiples of 16.
        quality: (B,) float, 1..100; 0 or less leaves the sample as it is.
    Returns: (B, 3, H, W) unit, multiples of 1/255 where compressed.
    """
    red, green, blue = torch.round(image * 255).clamp_(0, 255).unbind(1)
    luma = torch.round(0.299 * red + 0.587 * green + 0.114 * blue)
    chroma = torch.stack(
        (
            -0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128,
            0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128,
        ),
        1,
    )
    chroma = F.avg_pool2d(torch.round(chroma), 2)
    odd = torch.arange(chroma.shape[-1], device=chroma.device) % 2
    chroma = torch.floor(chroma + 0.25 + 0.25 * odd)  # libjpeg rounds halves down and up in turn
    tables = quantisation_tables(quality)
    luma = _blockwise(luma[:, None], tables[:, 0])[:, 0]
    chroma = _blockwise(chroma, tables[:, 1])
    chroma = torch.round(F.interpolate(chroma, scale_factor=2, mode="bilinear")) - 128
    cb, cr = chroma.unbind(1)
    rgb = torch.stack((luma + 1.402 * cr, luma - 0.344136286 * cb - 0.714136286 * cr, luma + 1.772 * cb), 1)
    result = torch.round(rgb).clamp_(0, 255) / 255
    return torch.where((quality > 0)[:, None, None, None], result, image)


def real_jpeg(image: Tensor, quality: int) -> Tensor:
    """Compress and decompress one (3, H, W) unit image on the CPU with Pillow's libjpeg (4:2:0)."""
    pixels = (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2)
    decoded = torch.from_numpy(np.array(Image.open(buffer)))
    return decoded.permute(2, 0, 1).float().div_(255)
