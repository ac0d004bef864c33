"""Metrics that need no network: PSNR, SSIM, high-frequency energy and colour shift."""

import torch
from torch import Tensor

from .base import Column

PSNR_CAP = 100.0
"""[dB] what identical images get, so that means and JSON stay finite."""
WINDOW = 5
"""[px] border in which an 11×11 window does not fit."""
HIGH_PASS_SIGMA = 2.0
"""[px] blur whose residual counts as high frequency; at 512 px it holds skin texture, hair and eyelashes."""


def luma(images: Tensor) -> Tensor:
    """Compute (B,3,H,W) RGB -> (B,1,H,W): BT.601 weights, in the range of the input."""
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


class Psnr:
    """Peak signal-to-noise ratio over all pixels and channels of an image, RGB in [0,1], capped at 100 dB."""

    columns = (Column("psnr", "higher", "10·log10(1/MSE) over RGB in [0,1], capped at 100", "dB", 2),)
    needs_reference = True

    def features(self, images: Tensor) -> Tensor:
        return images

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        value = peak_signal_noise_ratio(image, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
        return {"psnr": value.clamp(max=PSNR_CAP)}


class Ssim:
    """Structural similarity (Wang et al. 2004): Gaussian 11×11 window σ 1.5, K = (0.01, 0.03), RGB mean.

    Only windows that lie inside the picture count, as in the original and in VQFR's script.
    """

    columns = (
        Column("ssim", "higher", "structural similarity, Gaussian window σ 1.5, mean of the RGB channels"),
    )
    needs_reference = True

    def features(self, images: Tensor) -> Tensor:
        return images

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        from torchmetrics.functional.image import structural_similarity_index_measure

        _, whole = structural_similarity_index_measure(
            image, reference, data_range=1.0, reduction="none", return_full_image=True
        )
        return {"ssim": whole[..., WINDOW:-WINDOW, WINDOW:-WINDOW].mean(dim=(1, 2, 3))}


def high_frequency_energy(images: Tensor) -> Tensor:
    """Compute (B,): mean over pixels of (Y − G₂∗Y)², Y the luma in [0,1], G₂ a Gaussian, σ 2 px (13 taps)."""
    from torchvision.transforms.functional import gaussian_blur

    grey = luma(images)
    taps = 2 * round(3 * HIGH_PASS_SIGMA) + 1
    low = gaussian_blur(grey, [taps, taps], [HIGH_PASS_SIGMA, HIGH_PASS_SIGMA])
    return (grey - low).square().mean(dim=(1, 2, 3))


class HighFrequencyEnergy:
    """Fine detail of an image over that of its reference: 1 is right, below is soft, above is noisy."""

    columns = (Column("hf_energy", "one", "mean((Y − blur σ 2 px of Y)²) over that of the reference"),)
    needs_reference = True

    def features(self, images: Tensor) -> Tensor:
        return high_frequency_energy(images)

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        ratio = image / reference
        return {"hf_energy": torch.where(reference > 0, ratio, torch.full_like(ratio, torch.nan))}


class ColourShift:
    """Mean absolute difference of the channel means, in 8-bit levels: drift of the whole picture's colour."""

    columns = (
        Column(
            "colour_shift", "lower", "mean over R, G, B of |mean − mean of the reference|", "levels of 255", 2
        ),
    )
    needs_reference = True

    def features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def compare(self, image: Tensor, reference: Tensor) -> dict[str, Tensor]:
        return {"colour_shift": 255.0 * (image - reference).abs().mean(dim=1)}
