"""Blur, resize and JPEG for a batch in which every sample has its own kernel, size, target size and quality.

A batch of different sizes lives on one canvas (B, C, Hc, Wc): sample b occupies the top-left h_b × w_b, the
rest is arbitrary. Everything is a handful of batched operations: few launches on a GPU whatever the batch.

The JPEG simulation follows baseline JPEG as libjpeg does it: integer YCbCr, 4:2:0 by 2×2 means, 8×8 DCT,
Annex K tables scaled by quality, true rounding, triangle upsampling of the chroma. Source: ITU-T T.81 and
libjpeg's quality rule. The real codec is there, too, through Pillow.
"""

import io
import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LINEAR, BILINEAR, AREA, BICUBIC = range(4)
_LARGE = 160  # px


def gaussian_kernels(sigma_x: Tensor, sigma_y: Tensor, theta: Tensor, radius: Tensor, reach: int) -> Tensor:
    """Make rotated Gaussians, truncated to a square and normalised to sum 1.

    Args:
        sigma_x, sigma_y: (B,) standard deviations along the rotated axes [px]; 0 gives the unit impulse.
        theta: (B,) rotation [rad].
        radius: (B,) half side of the support [px].
        reach: canvas radius; at least the largest `radius`.
    Returns: (B, 2·reach+1, 2·reach+1).
    """
    axis = torch.arange(-reach, reach + 1, device=theta.device, dtype=theta.dtype)
    y, x = axis[None, :, None], axis[None, None, :]
    cos, sin = theta.cos()[:, None, None], theta.sin()[:, None, None]
    along, across = x * cos + y * sin, y * cos - x * sin
    sx, sy = (s.clamp_min(1e-2)[:, None, None] for s in (sigma_x, sigma_y))
    kernel = torch.exp(-0.5 * ((along / sx) ** 2 + (across / sy) ** 2))
    inside = torch.maximum(x.abs(), y.abs()) <= radius[:, None, None]
    kernel = kernel * inside
    return kernel / kernel.sum((1, 2), keepdim=True)


def extend(
    image: Tensor, heights: Tensor, widths: Tensor, before: int, size: tuple[int, int], mirror: bool
) -> Tensor:
    """Re-lay each sample onto a larger canvas, continued beyond its own border.

    Args:
        image: (B, C, Hc, Wc); heights, widths: (B,) long, the occupied part of each sample.
        before: rows and columns added in front; size: (H, W) of the result.
        mirror: reflect about the border pixel (without repeating it); otherwise repeat the border pixel.
    """
    rows = _source_index(heights, before, size[0], mirror)
    cols = _source_index(widths, before, size[1], mirror)
    batch, channels, _, canvas_w = image.shape
    image = image.gather(2, rows[:, None, :, None].expand(batch, channels, -1, canvas_w))
    return image.gather(3, cols[:, None, None, :].expand(batch, channels, size[0], -1))


def _source_index(length: Tensor, before: int, size: int, mirror: bool) -> Tensor:
    position = torch.arange(-before, size - before, device=length.device)[None]
    last = length[:, None] - 1
    if not mirror:
        return torch.minimum(position.clamp_min(0), last)
    period = (2 * last).clamp_min(1)
    folded = torch.remainder(position, period)
    return torch.minimum(folded, period - folded).clamp_max(last)


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


def blur(image: Tensor, kernels: Tensor, heights: Tensor, widths: Tensor, *, uniform: bool) -> Tensor:
    """Convolve every sample with its own point-symmetric kernel by FFT, mirrored at the sample's border.

    Args:
        image: (B, C, Hc, Wc); kernels: (B, 2r+1, 2r+1).
        uniform: all samples fill the canvas.
    FFT instead of convolution: 41×41 taps per pixel cost about 1,700 multiplications, the FFT about 60.
    """
    reach = kernels.shape[-1] // 2
    height, width = image.shape[-2:]
    size = (height + 2 * reach, width + 2 * reach)
    if uniform and reach < min(height, width):
        padded = F.pad(image, (reach,) * 4, mode="reflect")
    else:
        padded = extend(image, heights, widths, reach, size, mirror=True)
    fft_size = (fast_length(size[0]), fast_length(size[1]))
    spectrum = torch.fft.rfft2(padded, s=fft_size) * torch.fft.rfft2(kernels, s=fft_size)[:, None]
    return torch.fft.irfft2(spectrum, s=fft_size)[..., 2 * reach : size[0], 2 * reach : size[1]]


def resize_matrix(source: Tensor, target: Tensor, modes: Tensor, rows: int, cols: int) -> Tensor:
    """Write a one-dimensional resize as a matrix per sample, half-pixel centres, normalised at the border.

    Args:
        source, target: (B,) long, lengths before and after; modes: (B,) long, one of the kernel constants.
        rows, cols: canvas lengths after and before. Rows past `target` repeat the last one.
    Returns: (B, rows, cols) float32; columns past `source` are zero.
    Equal to `interpolate(mode="bilinear"|"bicubic", antialias=True)` for BILINEAR and BICUBIC (a = −0.5).
    """
    ratio = (source.float() / target.float())[:, None]
    index = torch.arange(rows, device=source.device)[None]
    centre = (torch.minimum(index, target[:, None] - 1) + 0.5) * ratio - 0.5
    mode = modes[:, None, None]
    spread = torch.where(mode == LINEAR, 1.0, ratio.clamp_min(1.0)[..., None])
    column = torch.arange(cols, device=source.device)[None, None]
    limit = (source[:, None, None] - 1).float()
    # plain interpolation clamps its sampling point, the antialiased ones renormalise their weights
    centre = torch.where(modes[:, None] == LINEAR, torch.minimum(centre.clamp_min(0), limit[..., 0]), centre)
    distance = ((column - centre[..., None]) / spread).abs()
    weight = _weights(distance, mode, spread) * (column <= limit)
    return weight / weight.sum(-1, keepdim=True)


def _weights(distance: Tensor, mode: Tensor, spread: Tensor) -> Tensor:
    triangle = (1 - distance).clamp_min(0)
    box = ((0.5 - distance) * spread + 0.5).clamp(0, 1)  # share of the source pixel inside the target pixel
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    cubic = torch.where(distance < 1, near, far) * (distance < 2)
    smooth = torch.where(mode == BICUBIC, cubic, triangle)
    return torch.where(mode == AREA, box, smooth)


def resize(
    image: Tensor,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    modes: Tensor,
    canvas: tuple[int, int],
) -> Tensor:
    """Resize each sample from `before` (heights, widths) to `after`; two batched matrix products.

    Args:
        image: (B, C, Hc, Wc); modes: (B,) long; canvas: (H, W) of the result.
    """
    if len(image) == 1 and image.device.type == "cpu" and min(*canvas, *image.shape[2:]) > _LARGE:
        mode = int(modes)
        if mode != AREA:
            return _interpolate(image[..., : int(before[0]), : int(before[1])], canvas, mode)
    batch, channels, height, width = image.shape
    across = resize_matrix(before[1], after[1], modes, canvas[1], width)
    down = resize_matrix(before[0], after[0], modes, canvas[0], height)
    image = torch.bmm(image.reshape(batch, channels * height, width), across.transpose(1, 2))
    return down[:, None] @ image.view(batch, channels, height, canvas[1])


def _interpolate(image: Tensor, size: tuple[int, int], mode: int) -> Tensor:
    """Do the same by torch's own kernels, at large sizes on a CPU several times faster than products."""
    if mode == BICUBIC:
        return F.interpolate(image, size=size, mode="bicubic", antialias=True)
    shrinks = size[0] < image.shape[2] or size[1] < image.shape[3]
    return F.interpolate(image, size=size, mode="bilinear", antialias=mode == BILINEAR and shrinks)


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
    """Build the (64, 64) orthonormal two-dimensional DCT-II of a flattened 8×8 block."""
    rows = [[math.cos((2 * x + 1) * u * math.pi / 16) for x in range(8)] for u in range(8)]
    basis = torch.tensor(rows, dtype=torch.float64) * 0.5
    basis[0] *= math.sqrt(0.5)
    return torch.kron(basis, basis).to(device=device, dtype=torch.float32)


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> Tensor:
    return torch.tensor([LUMA, CHROMA], dtype=torch.float32, device=device)


def quantisation_tables(quality: Tensor) -> Tensor:
    """Apply libjpeg's rule: (B,) qualities in 1..100 → (B, 2, 64) whole steps for luma and chroma."""
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
