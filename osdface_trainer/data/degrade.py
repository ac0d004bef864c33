"""Make low-quality faces from clean ones on the training device, seeded per sample.

Parameters are drawn on the CPU, from one generator per sample, so a sample's picture depends on its own seed
only: not on its neighbours in the batch, the batch size or the number of workers.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from osdface_core.color import luma
from osdface_core.errors import ConfigError

from ..seeds import as_seeds, mix
from .degrade_ops import blur, gaussian_kernel, real_jpeg, resize, simulate_jpeg
from .degrade_params import DegradationParams, StageParams, draw_params
from .degrade_profiles import Degradation
from .turbulence import turbulent

Jpeg = Literal["auto", "real", "simulated"]
Enlarge = Literal["bilinear", "bicubic"]
_SMALLEST = 8  # px: no face is reduced below one JPEG block


def degrade(
    hq: Tensor,
    profile: str | Degradation,
    seeds: Sequence[int] | Tensor,
    *,
    jpeg: Jpeg = "auto",
    enlarge: Enlarge = "bilinear",
) -> Tensor:
    """Degrade clean faces.

    Args:
        hq: (B, 3, H, W) unit float on any device; H, W at least 16.
        profile: a name of `PROFILES` or a `Degradation`.
        seeds: B integers; sample i depends on seeds[i] alone (and on the kind of device, for the noise).
        jpeg: "real" is Pillow's codec on the CPU; "simulated" is tensor code, which a GPU need not wait for;
            "auto" takes the real one on the CPU and the simulated one elsewhere.
        enlarge: how the small picture comes back to H × W at the end; evaluation compares with "bicubic".
    Returns: (B, 3, H, W) unit, float32, same device.
    Raises:
        ConfigError: unknown profile, wrong shape or a number of seeds that differs from B.
    Source: Real-ESRGAN and its predecessors; x = {[(y ⊗ k)↓s + n]_JPEG}↑s.
    """
    seeds = as_seeds(seeds)
    if hq.dim() != 4 or hq.shape[1] != 3 or min(hq.shape[2:]) < 16 or not hq.is_floating_point():
        raise ConfigError(
            f"degrade: got {tuple(hq.shape)} {hq.dtype}, expected float (B, 3, H, W) with H, W >= 16"
        )
    if len(seeds) != len(hq):
        raise ConfigError(f"degrade: got {len(seeds)} seeds for {len(hq)} images: give one per image")
    if not seeds:
        return hq.float()
    params = [draw_params(profile, seed) for seed in seeds]
    real = jpeg == "real" or (jpeg == "auto" and hq.device.type == "cpu")
    with torch.no_grad(), torch.autocast(hq.device.type, enabled=False):
        pairs = zip(hq.float().split(1), params, strict=True)
        return torch.cat([_run(face, own, real, enlarge) for face, own in pairs])


def _run(hq: Tensor, params: DegradationParams, real: bool, enlarge: Enlarge) -> Tensor:
    """Run the stages of one sample, (1, 3, H, W)."""
    image, full = hq, (hq.shape[2], hq.shape[3])
    for index, stage in enumerate(params.stages):
        if stage.turbulence:
            image = turbulent(image, stage.turbulence, mix(params.seed, 0xA17 + index))
        if max(stage.sigma) > 0:
            image = blur(image, gaussian_kernel(stage.sigma, stage.theta, stage.radius))
        height, width = (max(_SMALLEST, round(side / stage.scale)) for side in image.shape[2:])
        image = resize(image, (height, width), stage.kernel)
        image = _add_noise(image, stage, mix(params.seed, 0xA015E + index))
        if stage.quality:
            image = _compress(image, stage.quality, real)
        if stage.restore:
            image = resize(image, full, "bilinear")
    return _finish(resize(image, full, enlarge), params)


def _add_noise(image: Tensor, stage: StageParams, seed: int) -> Tensor:
    if not (stage.noise or stage.shot):
        return image
    generator = torch.Generator(image.device).manual_seed(seed)
    shape = (1 if stage.grey_noise else 3, *image.shape[2:])
    noise = torch.randn(shape, generator=generator, device=image.device)
    # Variances add; light noise grows with the square root of brightness.
    sigma = (stage.noise**2 + stage.shot**2 * image.clamp(0, 1)).sqrt() if stage.shot else stage.noise
    return (image + noise * sigma).clamp_(0, 1)


def _compress(image: Tensor, quality: int, real: bool) -> Tensor:
    return (
        real_jpeg(image[0].cpu(), quality)[None].to(image.device) if real else simulate_jpeg(image, quality)
    )


def _finish(image: Tensor, params: DegradationParams) -> Tensor:
    """Shift and drop colours, and round as a file would."""
    image = image + image.new_tensor(params.shift)[:, None, None] if any(params.shift) else image
    if params.grey:
        image = luma(image).expand_as(image)
    image = image.clamp(0, 1)
    return torch.round(image * 255) / 255 if params.eight_bit else image
