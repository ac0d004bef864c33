"""Eq. 2: the clean latent from one noise prediction at the single timestep T_L."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import OSDFaceConfig


def alpha_bar(config: OSDFaceConfig, timestep: int | None = None) -> float:
    """Cumulative product of (1 - beta) of Stable Diffusion's scaled-linear schedule.

    Args:
        timestep: [steps], 0 .. train_timesteps-1; None takes the config's T_L.
    Returns:
        0.42609 at T_L = 399 for the released model.
    Raises:
        ValueError: the timestep lies outside the schedule.
    """
    t = config.timestep if timestep is None else timestep
    if not 0 <= t < config.train_timesteps:
        raise ValueError(f"timestep {t} is outside 0..{config.train_timesteps - 1}")
    # Built on the CPU in float32, as the schedule's published values are.
    ends = (config.beta_start**0.5, config.beta_end**0.5)
    roots = torch.linspace(*ends, config.train_timesteps, dtype=torch.float32, device="cpu")
    return float(torch.cumprod(1.0 - roots.square(), dim=0)[t])


def predict_x0(latent: Tensor, eps: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """z_H = (z_L - sqrt(1 - a) * eps) / sqrt(a), in float32.

    Args:
        latent: (B, C, h, w), scaled latent of the low-quality face; no noise is added to it.
        eps: (B, C, h, w), predicted noise.
        alpha_bar: cumulative alpha at the timestep, in (0, 1].
    Returns:
        (B, C, h, w), float32.
    Source: OSDFace Eq. 2. The released code uses float64, which MPS lacks; float32 agrees to 1e-6.
    """
    return (latent.float() - (1.0 - alpha_bar) ** 0.5 * eps.float()) / alpha_bar**0.5
