"""Give restored faces the colours of the original crops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .choices import ColorFix, check_choice
from .errors import ConfigError

WAVELET_LEVELS = 5
"""Blurs with steps 1, 2, 4, 8, 16 px: at 512 px what is left is the light and colour of whole cheeks."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in luma (ITU-R BT.601, as in JPEG)."""


def color_fix(restored: Tensor, reference: Tensor, mode: ColorFix) -> Tensor:
    """Transfer colour from the reference to the restored crops.

    * `none`: nothing.
    * `adain`: mean and spread of each channel become the reference's (Huang and Belongie, "Arbitrary Style
      Transfer in Real-time with Adaptive Instance Normalization", 2017, Eq. 8, on pixels).
    * `wavelet`: everything finer than about 16 px comes from the restored crop, everything coarser from the
      reference (an a-trous wavelet split of `WAVELET_LEVELS` levels, as one-step restorers commonly do).
    * `luma`: brightness (BT.601 luma) from the restored crop, colour differences from the reference, smoothed
      so that its chroma noise and JPEG blocks stay behind.

    An exactly grey reference (R = G = B in every pixel) gives an exactly grey result, whatever the mode.

    Args:
        restored, reference: (B, 3, H, W) float, unit range, same shape.
        mode: what to transfer.
    Returns:
        (B, 3, H, W) unit range, dtype and device of `restored`.
    Raises:
        ConfigError: for an unknown mode (OptionError) or differing shapes.
    """
    check_choice("color_fix", mode, ColorFix)
    if restored.shape != reference.shape:
        raise ConfigError(
            f"color fix: restored crops have shape {tuple(restored.shape)}, "
            f"the originals {tuple(reference.shape)}: expected the same"
        )
    result, original = restored.float(), reference.to(restored.device).float()
    if mode == "adain":
        result = adain(result, original)
    elif mode == "wavelet":
        result = result - low_pass(result) + low_pass(original)
    elif mode == "luma":
        result = keep_luma(result, original)
    return keep_grey(result.clamp(0, 1), original).to(restored.dtype)


def adain(restored: Tensor, reference: Tensor) -> Tensor:
    """Give each image and channel the reference's mean and standard deviation. (B, C, H, W) float."""
    mean, spread = (
        restored.mean(dim=(2, 3), keepdim=True),
        restored.std(dim=(2, 3), keepdim=True, correction=0),
    )
    new_mean = reference.mean(dim=(2, 3), keepdim=True)
    new_spread = reference.std(dim=(2, 3), keepdim=True, correction=0)
    return (restored - mean) / spread.clamp(min=1e-5) * new_spread + new_mean


def low_pass(image: Tensor) -> Tensor:
    """Blur to the coarsest level of an a-trous split: 3x3 binomial, doubling steps. (B, C, H, W) float.

    The border is replicated, so that a constant stays constant. Steps end where the image is too small.
    """
    kernel = image.new_tensor([0.25, 0.5, 0.25])
    channels = image.shape[1]
    for level in range(WAVELET_LEVELS):
        step = 2**level
        image = F.pad(image, (step, step, step, step), mode="replicate")
        across = kernel.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
        down = kernel.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
        image = F.conv2d(image, across, dilation=step, groups=channels)
        image = F.conv2d(image, down, dilation=step, groups=channels)
    return image


def luma(image: Tensor) -> Tensor:
    """Compute BT.601 luma (B, 1, H, W) of (B, 3, H, W)."""
    weights = image.new_tensor(LUMA).view(1, 3, 1, 1)
    return (image * weights).sum(dim=1, keepdim=True)


def keep_luma(restored: Tensor, reference: Tensor) -> Tensor:
    """Add the smoothed colour differences (channel minus luma) of `reference` to the luma of `restored`.

    Colour that does not fit into the unit range at the new brightness is paled towards grey rather than cut,
    which would change the luma.
    """
    light = luma(restored)
    tint = reference - luma(reference)
    for step in (1, 2):  # about the resolution at which JPEG stores colour
        tint = F.avg_pool2d(F.pad(tint, (step,) * 4, mode="replicate"), 2 * step + 1, stride=1)
    room = torch.where(tint > 0, (1 - light) / tint.clamp(min=1e-6), light / (-tint).clamp(min=1e-6))
    fit = room.clamp(0, 1).amin(dim=1, keepdim=True)
    return light + tint * fit


def keep_grey(restored: Tensor, reference: Tensor) -> Tensor:
    """Replace images whose reference is exactly grey by their own luma in all three channels.

    Args:
        restored, reference: (B, 3, H, W) float.
    Returns:
        (B, 3, H, W): R = G = B to the last bit where the reference has it, else `restored`.
    """
    grey = (reference[:, :1] == reference).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return torch.where(grey, luma(restored).expand_as(restored), restored)
