"""Metrics that need no network: PSNR, SSIM, high-frequency energy and colour shift."""

import torch
from torch import Tensor

from ..losses.reconstruction import high_pass
from .base import Column, Metric

PSNR_CAP = 100.0
"""[dB] what identical images get, so that means and JSON stay finite."""
WINDOW = 5
"""[px] border in which an 11×11 window does not fit."""
HIGH_PASS_SIGMA = 2.0
"""[px] blur whose residual counts as high frequency; at 512 px it holds skin texture, hair and eyelashes."""


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio over all pixels and channels, capped at 100 dB."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    value = peak_signal_noise_ratio(images, references, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return value.clamp(max=PSNR_CAP)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Compute structural similarity (Wang et al. 2004): Gaussian 11×11 window σ 1.5, K = (0.01, 0.03).

    The mean of the RGB channels; only windows that lie inside the picture count, as in VQFR's script.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, whole = structural_similarity_index_measure(
        images, references, data_range=1.0, reduction="none", return_full_image=True
    )
    return whole[..., WINDOW:-WINDOW, WINDOW:-WINDOW].mean(dim=(1, 2, 3))


def high_frequency_energy(images: Tensor) -> Tensor:
    """Compute (B,): mean over pixels of (Y − G₂∗Y)², Y the luma in [0,1], G₂ a Gaussian, σ 2 px (13 taps)."""
    return high_pass(images, HIGH_PASS_SIGMA).square().mean(dim=(1, 2, 3))


def _energy_ratio(energy: Tensor, reference: Tensor) -> Tensor:
    ratio = energy / reference
    return torch.where(reference > 0, ratio, torch.full_like(ratio, torch.nan))


PSNR = Metric((Column("psnr", "higher", "10·log10(1/MSE) over RGB in [0,1], capped at 100", "dB", 2),), psnr)
SSIM = Metric(
    (Column("ssim", "higher", "structural similarity, Gaussian window σ 1.5, mean of the RGB channels"),),
    ssim,
)
DETAIL = Metric(
    (Column("hf_energy", "one", "mean((Y − blur σ 2 px of Y)²) over that of the reference"),),
    _energy_ratio,
    high_frequency_energy,
)
"""Fine detail of an image over that of its reference: 1 is right, below is soft, above is noisy."""
COLOUR_SHIFT = Metric(
    (
        Column(
            "colour_shift", "lower", "mean over R, G, B of |mean − mean of the reference|", "levels of 255", 2
        ),
    ),
    lambda means, reference: 255.0 * (means - reference).abs().mean(dim=1),
    lambda images: images.mean(dim=(2, 3)),
)
"""Mean absolute difference of the channel means, in 8-bit levels: drift of the whole picture's colour."""
