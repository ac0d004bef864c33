"""Blur, resize and JPEG of one picture, on its own device.

The JPEG simulation follows baseline JPEG as libjpeg does it: integer YCbCr, 4:2:0 by 2×2 means, 8×8 DCT,
libjpeg's own tables, true rounding, triangle upsampling of the chroma. Source: ITU-T T.81. The real codec is
there, too, through Pillow.
"""

import io
import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from osdface_core.images import from_unit, to_unit

from .degrade_profiles import ResizeKernel


def gaussian_kernel(sigma: tuple[float, float], theta: float, radius: int) -> Tensor:
    """Make a rotated Gaussian, truncated to a square and normalised to sum 1.

    Args:
        sigma: standard deviations along the rotated axes [px].
        theta: rotation [rad].
        radius: half side of the support [px].
    Returns: (2·radius+1, 2·radius+1).
    """
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = axis[:, None], axis[None]
    along = x * math.cos(theta) + y * math.sin(theta)
    across = y * math.cos(theta) - x * math.sin(theta)
    sigma_x, sigma_y = (max(value, 1e-2) for value in sigma)
    kernel = torch.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return kernel / kernel.sum()


@lru_cache(maxsize=256)
def fast_length(size: int) -> int:
    """Find the next even length without prime factors above 7, which FFT libraries handle fast."""
    length = size + size % 2
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve with a point-symmetric kernel by FFT, mirrored at the border.

    Args:
        image: (B, C, H, W); kernel: (2r+1, 2r+1).
    FFT instead of convolution: 41×41 taps per pixel cost about 1,700 multiplications, the FFT about 60.
    """
    reach = len(kernel) // 2
    rows, columns = (_mirrored(side, reach).to(image.device) for side in image.shape[2:])
    fft_size = (fast_length(len(rows)), fast_length(len(columns)))
    padded = image[..., rows[:, None], columns]
    spectrum = torch.fft.rfft2(padded, s=fft_size) * torch.fft.rfft2(kernel.to(image.device), s=fft_size)
    return torch.fft.irfft2(spectrum, s=fft_size)[..., 2 * reach : len(rows), 2 * reach : len(columns)]


def _mirrored(length: int, reach: int) -> Tensor:
    """Index a line continued by `reach` on both sides, reflected as often as needed."""
    folded = torch.arange(-reach, length + reach).remainder(2 * (length - 1))
    return torch.minimum(folded, 2 * (length - 1) - folded)


def resize(image: Tensor, size: tuple[int, int], kernel: ResizeKernel) -> Tensor:
    """Resize (B, C, H, W) to `size`; see `DegradationStage.resize` for the kernels."""
    before = (image.shape[2], image.shape[3])
    if before == size:
        return image
    if kernel == "area":
        down, across = (_area_matrix(*sides).to(image.device) for sides in zip(before, size, strict=True))
        return down @ image @ across.T
    if kernel == "bicubic":
        return F.interpolate(image, size=size, mode="bicubic", antialias=True)
    shrinks = size[0] < before[0] or size[1] < before[1]
    return F.interpolate(image, size=size, mode="bilinear", antialias=kernel == "bilinear" and shrinks)


def _area_matrix(source: int, target: int) -> Tensor:
    """Write a resize of a line as a (target, source) matrix: means over what a target pixel covers."""
    ratio = source / target
    centre = (torch.arange(target)[:, None] + 0.5) * ratio - 0.5
    distance = (torch.arange(source)[None] - centre).abs()
    weight = (0.5 * max(ratio, 1.0) + 0.5 - distance).clamp(0, 1)
    return weight / weight.sum(1, keepdim=True)


@lru_cache(maxsize=8)
def _dct_matrix(device: torch.device) -> Tensor:
    """Build the (64, 64) orthonormal two-dimensional DCT-II of a flattened 8×8 block."""
    rows = [[math.cos((2 * x + 1) * u * math.pi / 16) for x in range(8)] for u in range(8)]
    basis = torch.tensor(rows, dtype=torch.float64) * 0.5
    basis[0] *= math.sqrt(0.5)
    return torch.kron(basis, basis).to(device=device, dtype=torch.float32)


@lru_cache(maxsize=256)
def _steps(quality: int, device: torch.device) -> Tensor:
    """Read libjpeg's quantisation steps for luma and chroma, (2, 64), from a file that it writes."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as picture:
        tables = picture.quantization  # type: ignore[attr-defined]
    return torch.tensor([tables[0], tables[1]], dtype=torch.float32, device=device)


def _blockwise(planes: Tensor, steps: Tensor) -> Tensor:
    """Quantise the DCT of every 8×8 block. planes: (B, C, H, W) in 0..255, W % 8 = 0; steps: (64,)."""
    rows = planes.shape[2]
    planes = F.pad(planes, (0, 0, 0, -rows % 8), mode="replicate")
    batch, channels, height, width = planes.shape
    blocks = planes.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    dct = _dct_matrix(planes.device)
    levels = (blocks.reshape(-1, 64) - 128) @ dct.T / steps
    blocks = (torch.trunc(levels + torch.sign(levels) * 0.5) * steps) @ dct  # halves go away from zero
    blocks = torch.round(blocks + 128).clamp_(0, 255)
    shape = (batch, channels, height // 8, width // 8, 8, 8)
    return blocks.view(shape).transpose(3, 4).reshape(batch, channels, height, width)[:, :, :rows]


def simulate_jpeg(image: Tensor, quality: int) -> Tensor:
    """Compress and decompress on the image's device, not differentiable.

    Args:
        image: (B, 3, H, W) unit. quality: 1..100.
    Returns: (B, 3, H, W) unit, multiples of 1/255.
    """
    height, width = image.shape[2:]
    # Like libjpeg: columns are continued to whole blocks before the chroma is halved, rows afterwards.
    image = F.pad(image, (0, -width % 16, 0, height % 2), mode="replicate")
    red, green, blue = torch.round(image * 255).clamp_(0, 255).unbind(1)
    luma = torch.round(0.299 * red + 0.587 * green + 0.114 * blue)
    blueness = -0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128
    redness = 0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128
    chroma = F.avg_pool2d(torch.round(torch.stack((blueness, redness), 1)), 2)
    odd = torch.arange(chroma.shape[-1], device=chroma.device) % 2
    chroma = torch.floor(chroma + 0.25 + 0.25 * odd)  # libjpeg rounds halves down and up in turn
    steps = _steps(quality, image.device)
    luma = _blockwise(luma[:, None], steps[0])[:, 0]
    chroma = _blockwise(chroma, steps[1])[..., : (height + 1) // 2, : (width + 1) // 2]
    cb, cr = (torch.round(F.interpolate(chroma, scale_factor=2, mode="bilinear")) - 128).unbind(1)
    luma, cb, cr = (plane[..., :height, :width] for plane in (luma, cb, cr))
    rgb = torch.stack((luma + 1.402 * cr, luma - 0.344136286 * cb - 0.714136286 * cr, luma + 1.772 * cb), 1)
    return torch.round(rgb).clamp_(0, 255) / 255


def real_jpeg(image: Tensor, quality: int) -> Tensor:
    """Compress and decompress one (3, H, W) unit image on the CPU with Pillow's libjpeg (4:2:0)."""
    buffer = io.BytesIO()
    Image.fromarray(from_unit(image, np.uint8)).save(buffer, "JPEG", quality=quality, subsampling=2)
    return to_unit(np.array(Image.open(buffer)))
