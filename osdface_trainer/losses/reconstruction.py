"""Pixel losses, and a colour loss on blurred images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mse(restored: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared difference (OSDFace Eq. 12), 0-d float32; 4 × larger for `signed` images."""
    return (restored.float() - target.float()).square().mean()


def l1(restored: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute difference (OSDFace Eq. 7), float32 scalar."""
    return (restored.float() - target.float()).abs().mean()


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian and reflected edges, in float32.

    Args:
        images: (B, C, H, W), each side longer than 3 σ.
        sigma: standard deviation [px]; the kernel reaches 3 σ.
    """
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    count, channels, height, width = images.shape
    with torch.autocast(images.device.type, enabled=False):
        x = images.float().reshape(count * channels, 1, height, width)
        x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="reflect"), kernel)
        x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), kernel.transpose(2, 3))
    return x.reshape(images.shape)


def low_frequency_loss(restored: Tensor, target: Tensor, sigma: float = 8.0) -> Tensor:
    """Compute the mean absolute difference of the blurred images: holds colours in place and ignores detail.

    The blur is linear, so one blur of the difference does; it runs at a quarter of the size where σ allows.

    Args:
        restored, target: (B, C, H, W), the same range; sides a multiple of 4.
        sigma: standard deviation of the blur [px].
    Returns:
        float32 scalar.
    Source: OSDFace, supplement E: one-step restorers shift colours.
    """
    difference = restored.float() - target.float()
    if sigma >= 4:
        difference, sigma = F.avg_pool2d(difference, 4), sigma / 4
    return blur(difference, sigma).abs().mean()
