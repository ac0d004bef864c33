"""Make low-quality faces from clean ones on the training device: batched, seeded per sample.

Parameters are drawn on the CPU, from one generator per sample, so a sample's picture depends on its own seed
only: not on its neighbours in the batch, the batch size or the number of workers. On a GPU the whole batch
shares one canvas (see degrade_ops.py); on the CPU samples run one after the other, each at its own size,
which is faster there.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from osdface_core.errors import ConfigError

from ..seeds import as_seeds, mix
from .degrade_ops import BICUBIC, BILINEAR, blur, extend, gaussian_kernels, real_jpeg, resize, simulate_jpeg
from .degrade_params import DegradationParams, StageParams, draw_params
from .degrade_profiles import PROFILES, Degradation, DegradationStage, named_profile

__all__ = [
    "PROFILES",
    "Degradation",
    "DegradationParams",
    "DegradationStage",
    "degrade",
    "draw_params",
    "named_profile",
]

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
        jpeg: "real" is Pillow's codec, one sample at a time on the CPU; "simulated" is batched tensor code;
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
    draws = [draw_params(profile, seed) for seed in seeds]
    real = jpeg == "real" or (jpeg == "auto" and hq.device.type == "cpu")
    back = {"bilinear": BILINEAR, "bicubic": BICUBIC}[enlarge]
    with torch.no_grad(), torch.autocast(hq.device.type, enabled=False):
        hq = hq.float()
        if hq.device.type == "cpu":
            return (
                torch.cat([_run(hq[i : i + 1], [one], real, back) for i, one in enumerate(draws)])
                if draws
                else hq
            )
        return _run(hq, draws, real, back) if draws else hq


def _run(hq: Tensor, draws: list[DegradationParams], real: bool, enlarge: int = BILINEAR) -> Tensor:
    """Run the stages of a batch on one canvas; `sizes` follows what each sample occupies of it."""
    full = (hq.shape[2], hq.shape[3])
    image, sizes = hq, [full] * len(draws)
    for index in range(max(len(one.stages) for one in draws)):
        stages = [one.stages[index] if index < len(one.stages) else StageParams() for one in draws]
        image = _blur(image, stages, sizes)
        smaller = [_scaled(size, stage.scale) for size, stage in zip(sizes, stages, strict=True)]
        image = _resize(image, sizes, smaller, [stage.kernel for stage in stages])
        sizes = smaller
        image = _add_noise(image, stages, sizes, [mix(one.seed, 0xA015E + index) for one in draws])
        image = _compress(image, stages, sizes, real)
        back = [full if stage.restore else size for stage, size in zip(stages, sizes, strict=True)]
        image = _resize(image, sizes, back, [BILINEAR] * len(draws))
        sizes = back
    image = _resize(image, sizes, [full] * len(draws), [enlarge] * len(draws))
    return _finish(image, draws)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(_SMALLEST, round(size[0] / scale)), max(_SMALLEST, round(size[1] / scale))


def _lengths(sizes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    table = torch.tensor(sizes, dtype=torch.long).to(device, non_blocking=True)
    return table[:, 0], table[:, 1]


def _fills(image: Tensor, sizes: list[tuple[int, int]]) -> bool:
    return all(size == tuple(image.shape[2:]) for size in sizes)


def _blur(image: Tensor, stages: list[StageParams], sizes: list[tuple[int, int]]) -> Tensor:
    if not any(max(stage.sigma) > 0 for stage in stages):
        return image
    rows = [(*stage.sigma, stage.theta, float(stage.radius)) for stage in stages]
    table = torch.tensor(rows).to(image.device, non_blocking=True)
    reach = max(stage.radius for stage in stages)
    if len(stages) > 1:  # few distinct FFT sizes, so that a GPU plans each of them once
        reach = -(-reach // 16) * 16
    sigma_x, sigma_y, theta, radius = table.unbind(1)
    kernels = gaussian_kernels(sigma_x, sigma_y, theta, radius, reach)
    heights, widths = _lengths(sizes, image.device)
    return blur(image, kernels, heights, widths, uniform=_fills(image, sizes))


def _resize(
    image: Tensor, before: list[tuple[int, int]], after: list[tuple[int, int]], kernels: list[int]
) -> Tensor:
    if before == after:
        return image
    canvas = (max(size[0] for size in after), max(size[1] for size in after))
    modes = torch.tensor(kernels).to(image.device, non_blocking=True)
    return resize(image, _lengths(before, image.device), _lengths(after, image.device), modes, canvas)


def _add_noise(
    image: Tensor, stages: list[StageParams], sizes: list[tuple[int, int]], seeds: list[int]
) -> Tensor:
    if not any(stage.noise or stage.shot for stage in stages):
        return image
    noise = torch.zeros_like(image)
    generator = torch.Generator(image.device)
    for field, stage, (height, width), seed in zip(noise, stages, sizes, seeds, strict=True):
        if stage.noise or stage.shot:
            generator.manual_seed(seed)
            channels = 1 if stage.grey_noise else 3
            field[:, :height, :width] = torch.randn(
                (channels, height, width), generator=generator, device=image.device
            )
    amounts = torch.tensor([(stage.noise, stage.shot) for stage in stages]).to(
        image.device, non_blocking=True
    )
    additive, shot = amounts[:, 0, None, None, None], amounts[:, 1, None, None, None]
    if any(
        stage.shot for stage in stages
    ):  # variances add; light noise grows with the square root of brightness
        noise.mul_((additive**2 + shot**2 * image.clamp(0, 1)).sqrt_())
    else:
        noise.mul_(additive)
    return noise.add_(image).clamp_(0, 1)


def _compress(image: Tensor, stages: list[StageParams], sizes: list[tuple[int, int]], real: bool) -> Tensor:
    if not any(stage.quality for stage in stages):
        return image
    if real:
        return _compress_each(image, stages, sizes)
    height, width = (-(-max(size[axis] for size in sizes) // 16) * 16 for axis in (0, 1))
    occupied = image.shape[2:]
    aligned = all(size[0] % 16 == 0 and size[1] % 16 == 0 and size == tuple(occupied) for size in sizes)
    if not aligned:  # the codec repeats each picture's last row and column up to the block border
        image = extend(image, *_lengths(sizes, image.device), 0, (height, width), mirror=False)
    quality = torch.tensor([float(stage.quality) for stage in stages]).to(image.device, non_blocking=True)
    return simulate_jpeg(image, quality)[..., : occupied[0], : occupied[1]]


def _compress_each(image: Tensor, stages: list[StageParams], sizes: list[tuple[int, int]]) -> Tensor:
    image = image.clone()
    for picture, stage, (height, width) in zip(image, stages, sizes, strict=True):
        if stage.quality:
            part = picture[:, :height, :width]
            part.copy_(real_jpeg(part.cpu(), stage.quality))
    return image


def _finish(image: Tensor, draws: list[DegradationParams]) -> Tensor:
    if any(any(one.shift) for one in draws):
        image = image + torch.tensor([one.shift for one in draws]).to(image.device)[..., None, None]
    if any(one.grey for one in draws):
        luma = (image * image.new_tensor((0.299, 0.587, 0.114))[:, None, None]).sum(1, keepdim=True)
        grey = torch.tensor([one.grey for one in draws]).to(image.device)[:, None, None, None]
        image = torch.where(grey, luma.expand_as(image), image)
    image = image.clamp(0, 1)
    if not any(one.eight_bit for one in draws):
        return image
    rounded = torch.round(image * 255) / 255
    if all(one.eight_bit for one in draws):
        return rounded
    keep = torch.tensor([one.eight_bit for one in draws]).to(image.device)[:, None, None, None]
    return torch.where(keep, rounded, image)
