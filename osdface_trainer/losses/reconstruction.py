"""Pixel losses, a colour loss on blurred images, and a detail loss on what a blur takes away."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from osdface_core.color import luma


def mse(restored: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared difference (OSDFace Eq. 12), 0-d float32; 4 × larger for `signed` images."""
    return F.mse_loss(restored.float(), target.float())


def l1(restored: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute difference (OSDFace Eq. 7), float32 scalar."""
    return F.l1_loss(restored.float(), target.float())


def relative_l1(restored: Tensor, target: Tensor, degraded: Tensor, least: float = 0.03) -> Tensor:
    """Divide each picture's mean absolute difference by that of its input: mean over the batch, 0-d float32.

    Args:
        restored, target, degraded: (B, C, H, W), the same range.
        least: an input that is nearer than this counts as this far off.
    """
    ours, before = ((image.float() - target.float()).abs().mean((1, 2, 3)) for image in (restored, degraded))
    return (ours / before.clamp_min(least)).mean()


def low_frequency_loss(restored: Tensor, target: Tensor, sigma: float = 8.0) -> Tensor:
    """Compute the mean absolute difference of the blurred images: holds colours in place and ignores detail.

    The blur is linear, so one blur of the difference does; it runs at a quarter of the size where σ allows.

    Args:
        restored, target: (B, C, H, W), the same range; sides a multiple of 4, longer than 3 σ.
        sigma: standard deviation of the Gaussian, which reaches 3 σ over reflected edges [px].
    Returns:
        float32 scalar.
    Source: OSDFace, supplement E: one-step restorers shift colours.
    """
    from torchvision.transforms.functional import gaussian_blur

    difference = restored.float() - target.float()
    if sigma >= 4:
        difference, sigma = F.avg_pool2d(difference, 4), sigma / 4
    side = 2 * max(1, round(3 * sigma)) + 1
    with torch.autocast(difference.device.type, enabled=False):
        return gaussian_blur(difference, [side, side], [sigma, sigma]).abs().mean()


def detail_loss(restored: Tensor, target: Tensor, sigma: float = 2.0) -> Tensor:
    """Compare how much fine detail the images have, not where exactly: mean |a - b| of local amplitudes.

    A pixel or feature distance prefers a blurred texture to one that is right but a pixel off; this does not.
    A decoder's cheapest detail is the same little pattern in every cell of 8 × 8 px, so what is left of the
    residual when all cells of an area are averaged is compared, too, and added.

    Args:
        restored, target: (B, 3, H, W) signed; sides a multiple of 8, 16 px or more.
        sigma: standard deviation of the Gaussian whose residual counts as detail [px].
    Returns:
        float32 scalar; an amplitude is the root mean square of the luma's residual, black to white being 2.
    """
    with torch.autocast(restored.device.type, enabled=False):
        ours, theirs = (high_pass(image.float(), sigma) for image in (restored, target))
        amplitude = F.l1_loss(_local_amplitude(ours), _local_amplitude(theirs))
        return amplitude + _mean_cells(ours - theirs).abs().mean()


def high_pass(image: Tensor, sigma: float) -> Tensor:
    """Take a Gaussian blur (to 3 σ) from the luma of (B, 3, H, W): (B, 1, H, W), the fine detail."""
    grey = luma(image)
    rows, columns = (_blur_matrix(side, sigma, grey.device) for side in grey.shape[-2:])
    return grey - rows.mT @ (grey @ columns)


@lru_cache(8)
@torch.inference_mode(mode=False)  # what is kept must serve a step that learns, too
def _blur_matrix(side: int, sigma: float, device: torch.device) -> Tensor:
    """(side, side), a Gaussian blur of lines as a product: a convolution of one channel is slow on CPUs."""
    from torchvision.transforms.functional import gaussian_blur

    lines = torch.eye(side, device=device)[None, None]
    return gaussian_blur(lines, [2 * round(3 * sigma) + 1, 1], [sigma, sigma])[0, 0]


def _local_amplitude(residual: Tensor, side: int = 16) -> Tensor:
    """Over squares of `side` px that overlap by half."""
    return (F.avg_pool2d(residual.square(), side, side // 2) + 1e-5).sqrt()


def _mean_cells(residual: Tensor, cell: int = 8, side: int = 16) -> Tensor:
    """(B, areas, cell²), the mean cell of each area of up to `side` × `side` cells."""
    cells = F.pixel_unshuffle(residual, cell)
    return F.avg_pool2d(cells, tuple(min(side, extent) for extent in cells.shape[2:]))
