"""Mild changes of the clean faces: mirror, colour jitter, a small similarity transform. Seeded per sample."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from osdface_core.color import luma
from osdface_core.errors import ConfigError

from ..seeds import as_seeds, mix


@dataclass(frozen=True)
class Augmentation:
    """How far a clean face may be changed; all draws are uniform and symmetric about no change.

    Args:
        flip: probability of mirroring.
        brightness, contrast, saturation: largest relative change, e.g. 0.1 for ×0.9 … ×1.1.
        tint: largest relative change of each colour channel.
        rotate: largest rotation [degrees]; zoom: largest relative change of scale; shift: largest offset as a
            share of the side. They resample (bicubic), which softens a little: keep them rare or small.
        geometry_prob: probability that the three happen.
    """

    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    tint: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    geometry_prob: float = 0.5


def flips(seeds: Sequence[int] | Tensor, probability: float = 0.5) -> list[bool]:
    """Decide which samples are mirrored, from their seeds alone."""
    return [random.Random(mix(seed, 0xF11)).random() < probability for seed in as_seeds(seeds)]


def augment(hq: Tensor, seeds: Sequence[int] | Tensor, config: Augmentation | None = None) -> Tensor:
    """Augment clean faces before they are degraded.

    Args:
        hq: (B, 3, H, W) unit float; seeds: B integers; config: default mirrors half of them.
    Returns: like `hq`, clamped to [0, 1]; sample i depends on seeds[i] alone.
    Raises:
        ConfigError: another number of seeds than images.
    """
    config = config or Augmentation()
    seeds = as_seeds(seeds)
    if len(seeds) != len(hq):
        raise ConfigError(f"augment: got {len(seeds)} seeds for {len(hq)} images: give one per image")
    if not len(hq):
        return hq
    mirrored = torch.tensor(flips(seeds, config.flip)).to(hq.device)[:, None, None, None]
    hq = torch.where(mirrored, hq.flip(-1), hq)
    return _geometry(_colour(hq, seeds, config), seeds, config)


def _colour(hq: Tensor, seeds: list[int], config: Augmentation) -> Tensor:
    ranges = (config.brightness, config.contrast, config.saturation, *[config.tint] * 3)
    if not any(ranges):
        return hq
    sources = [random.Random(mix(seed, 0xC01)) for seed in seeds]
    rows = [[1 + source.uniform(-reach, reach) for reach in ranges] for source in sources]
    factors = torch.tensor(rows).to(hq.device)[:, :, None, None, None]
    hq = hq * factors[:, 0] * factors[:, 3:, 0]
    mean = hq.mean((1, 2, 3), keepdim=True)
    hq = (hq - mean) * factors[:, 1] + mean
    grey = luma(hq)
    return ((hq - grey) * factors[:, 2] + grey).clamp(0, 1)


def _geometry(hq: Tensor, seeds: list[int], config: Augmentation) -> Tensor:
    if not (config.rotate or config.zoom or config.shift) or not config.geometry_prob:
        return hq
    chosen, matrices = [], []
    for index, seed in enumerate(seeds):
        source = random.Random(mix(seed, 0x6E0))
        if source.random() < config.geometry_prob:
            chosen.append(index)
            matrices.append(_similarity(source, config))
    if not chosen:
        return hq
    where = torch.tensor(chosen).to(hq.device)
    part = hq[where]
    grid = F.affine_grid(torch.tensor(matrices).to(hq), list(part.shape), align_corners=False)
    moved = F.grid_sample(part, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return hq.index_copy(0, where, moved.clamp(0, 1))


def _similarity(source: random.Random, config: Augmentation) -> list[list[float]]:
    angle = math.radians(source.uniform(-config.rotate, config.rotate))
    scale = 1 / (1 + source.uniform(-config.zoom, config.zoom))
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    x, y = (2 * source.uniform(-config.shift, config.shift) for _ in range(2))
    return [[cos, -sin, x], [sin, cos, y]]
