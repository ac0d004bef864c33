"""Pixel losses, and a colour loss on blurred images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mse(restored: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared difference (OSDFace Eq. 12), 0-d float32; 4 × larger for `signed` images."""
    return F.mse_loss(restored.float(), target.float())


def l1(restored: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute difference (OSDFace Eq. 7), float32 scalar."""
    return F.l1_loss(restored.float(), target.float())


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
