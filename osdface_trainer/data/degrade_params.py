"""The random choices behind one degraded face, drawn on the CPU from a generator of its own."""

import math
import random
from dataclasses import dataclass

from ..seeds import mix
from .degrade_profiles import Degradation, DegradationStage, ResizeKernel, named_profile


@dataclass(frozen=True)
class StageParams:
    """What one sample goes through in one stage: blur σ and radius in px, θ in rad, noise σ in unit range,
    turbulence in m.
    """

    sigma: tuple[float, float] = (0.0, 0.0)
    theta: float = 0.0
    radius: int = 0
    scale: float = 1.0
    kernel: ResizeKernel = "bilinear"
    noise: float = 0.0
    shot: float = 0.0
    grey_noise: bool = False
    quality: int = 0
    turbulence: float = 0.0
    restore: bool = False


@dataclass(frozen=True)
class DegradationParams:
    """All random choices of one sample; `name` is the profile (or the alternative) that was taken."""

    name: str
    stages: tuple[StageParams, ...]
    grey: bool
    shift: tuple[float, float, float]
    eight_bit: bool
    seed: int


def draw_params(profile: str | Degradation, seed: int) -> DegradationParams:
    """Draw the parameters of one sample. Pure: the same profile and seed give the same draw everywhere."""
    profile = named_profile(profile)
    source = random.Random(mix(seed, 0xD1CE))
    grey_prob, shift, shift_prob, eight_bit = 0.0, 0.0, 0.0, True
    while True:
        grey_prob, shift = profile.grey_prob or grey_prob, profile.colour_shift or shift
        shift_prob, eight_bit = profile.colour_prob or shift_prob, profile.eight_bit and eight_bit
        if not profile.alternatives:
            break
        weights = [weight for weight, _ in profile.alternatives]
        profile = source.choices([part for _, part in profile.alternatives], weights)[0]
    stages = tuple(_draw_stage_params(stage, source) for stage in profile.stages)
    grey = source.random() < grey_prob
    amount = shift / 255 if source.random() < shift_prob else 0.0
    red, green, blue = (source.uniform(-amount, amount) for _ in range(3))
    return DegradationParams(profile.name, stages, grey, (red, green, blue), eight_bit, seed)


def _draw_stage_params(stage: DegradationStage, source: random.Random) -> StageParams:
    happens = source.random() < stage.prob
    sigma = [source.uniform(*stage.blur), source.uniform(*stage.blur)]
    if source.random() < stage.isotropic:
        sigma[1] = sigma[0]
    if source.random() >= stage.blur_prob:
        sigma = [0.0, 0.0]
    theta = source.uniform(-math.pi, math.pi)
    radius = int(3 * max(sigma) + 0.999)
    if stage.kernel is not None:
        radius = source.randint(stage.kernel[0] // 2, stage.kernel[1] // 2)
    low, high = stage.scale
    scale = low * (high / low) ** source.random() if stage.log_scale else source.uniform(low, high)
    kernel = source.choice(stage.resize)
    noisy = source.random() < stage.noise_prob
    noise, shot = source.uniform(*stage.noise) / 255, source.uniform(*stage.shot) / 255
    grey_noise = source.random() < stage.grey_noise
    quality = source.randint(*stage.jpeg) if stage.jpeg else 0
    compressed = source.random() < stage.jpeg_prob
    air = source.uniform(*stage.turbulence) if stage.turbulence[1] else 0.0
    if not happens:
        return StageParams()
    return StageParams(
        (sigma[0], sigma[1]), theta, radius, scale, kernel,
        noise * noisy, shot * noisy, grey_noise, quality * compressed, air, stage.restore,
    )  # fmt: skip
