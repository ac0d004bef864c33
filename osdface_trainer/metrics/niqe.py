"""NIQE, the "completely blind" image quality analyser (Mittal, Soundararajan, Bovik, IEEE SPL 2013).

An image is compared with a multivariate Gaussian of natural-scene statistics: 18 features of the locally
normalised luma per 96×96 block, at two scales. Written from the paper's equations (numbers below);
resizing, rounding and luma follow MATLAB, whose release the published scores come from. Luma is Y of YCbCr
(Y channel).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osdface_core.errors import CheckpointError

from .base import Column, Metric, WeightFile, WeightFinder

PARAMETERS = WeightFile(
    ("niqe_pris_params.npz",),
    "NIQE's model of pristine images",
    "XPixelGroup/BasicSR or TencentARC/VQFR (Apache-2.0)",
)
BLOCK = 96
"""[px] side of a block at full scale; the pristine model was fitted on blocks of this size."""
_SHAPES = np.arange(0.2, 10.001, 0.001)
"""Grid of generalised-Gaussian shape parameters that the moment matching searches."""


def luma_matlab(images: Tensor) -> Tensor:
    """Compute (B,3,H,W) RGB in [0,1] -> (B,1,H,W) float64 on the CPU: Y of YCbCr, BT.601, 16…235, rounded."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    return ((images.cpu().double() * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True) + 16.0).round()


def half_size(images: Tensor) -> Tensor:
    """Halve (B,1,H,W) -> (B,1,H/2,W/2) as MATLAB's `imresize`: bicubic, antialiased, mirrored borders.

    float64; H and W even.
    """
    mirrored = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (8, 8), (8, 8)), "symmetric"))
    return F.interpolate(mirrored, scale_factor=0.5, mode="bicubic", antialias=True)[..., 4:-4, 4:-4]


def normalise(images: Tensor, window: Tensor) -> Tensor:
    """Normalise by Eq. 1-3: (I − μ)/(σ + 1), local Gaussian moments, replicated borders; float64, 0…255."""
    pad = window.shape[-1] // 2
    kernel = window[None, None]
    mean = F.conv2d(F.pad(images, (pad,) * 4, mode="replicate"), kernel)
    square = F.conv2d(F.pad(images.square(), (pad,) * 4, mode="replicate"), kernel)
    return (images - mean) / ((square - mean.square()).abs().sqrt() + 1.0)


def blocks_of(images: Tensor, side: int) -> Tensor:
    """Cut (B,1,H,W) -> (B, blocks, side, side); H and W multiples of `side`."""
    b, _, h, w = images.shape
    tiles = images.reshape(b, h // side, side, w // side, side).permute(0, 1, 3, 2, 4)
    return tiles.reshape(b, -1, side, side)


def fit_aggd(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the moments of an asymmetric generalised Gaussian (Lasmar et al. 2009) along the last axis.

    Returns:
        shape, left scale and right scale (α, β_l, β_r of Eq. 7); NaN where one side has no samples.
    """
    from scipy.special import gamma

    with np.errstate(invalid="ignore", divide="ignore"):
        squares = samples**2
        left, right = (
            np.sqrt((squares * side).sum(-1) / side.sum(-1)) for side in (samples < 0, samples > 0)
        )
        ratio = left / right
        moment = np.abs(samples).mean(-1) ** 2 / squares.mean(-1)
        target = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    curve = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))
    shape = np.where(np.isnan(target), np.nan, _SHAPES[_nearest(curve, np.nan_to_num(target))])
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def _nearest(curve: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Find the index of the entry of the rising `curve` that is closest to each value."""
    above = np.clip(np.searchsorted(curve, values), 1, len(curve) - 1)
    return np.where(values - curve[above - 1] <= curve[above] - values, above - 1, above)


def block_features(blocks: np.ndarray) -> np.ndarray:
    """Compute (..., side, side) normalised blocks -> (..., 18): shape, scale, 4 numbers per direction."""
    from scipy.special import gamma

    flat = (*blocks.shape[:-2], -1)
    shape, left, right = fit_aggd(blocks.reshape(flat))
    features = [shape, (left + right) / 2]
    for shift in (
        (0, 1),
        (1, 0),
        (1, 1),
        (1, -1),
    ):  # horizontal, vertical and both diagonals, wrapping around
        products = blocks * np.roll(blocks, shift, axis=(-2, -1))
        shape, left, right = fit_aggd(products.reshape(flat))
        features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]  # mean: Eq. 8
    return np.stack(features, axis=-1)


def distance(features: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Compute Eq. 10: the model against a Gaussian fitted to (blocks, 36) features; NaN below two blocks."""
    usable = features[~np.isnan(features).any(axis=1)]
    if len(usable) < 2:
        return float("nan")
    gap = mean - np.nanmean(features, axis=0)
    pooled = (covariance + np.cov(usable, rowvar=False)) / 2
    return float(np.sqrt(gap @ np.linalg.pinv(pooled) @ gap))


class Niqe:
    """No-reference quality of the Y channel; lower is more natural. NaN for images below two 96 px blocks."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as stored:
                self.mean = stored["mu_pris_param"].reshape(-1)
                self.covariance = stored["cov_pris_param"]
                self.window = torch.from_numpy(stored["gaussian_window"]).double()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is no NIQE parameter file ({error}); get it again") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Compute (B,) scores."""
        grey = luma_matlab(images)
        h, w = (side // BLOCK * BLOCK for side in grey.shape[2:])
        if h * w < 2 * BLOCK * BLOCK:
            return torch.full((len(images),), torch.nan, dtype=torch.float64)
        grey = grey[..., :h, :w]
        parts = [
            block_features(blocks_of(normalise(level, self.window), side).numpy())
            for level, side in ((grey, BLOCK), (half_size(grey), BLOCK // 2))
        ]
        stacked = np.concatenate(parts, axis=-1)
        return torch.tensor(
            [distance(one, self.mean, self.covariance) for one in stacked], dtype=torch.float64
        )


def load_niqe(finder: WeightFinder, _: torch.device) -> Metric:
    """Load the metric from the pristine images' parameters."""
    column = Column("niqe", "lower", "distance to natural-scene statistics, Y channel, 96 px blocks")
    return Metric((column,), lambda scores, _: scores, Niqe(finder.find(PARAMETERS)), needs_reference=False)
