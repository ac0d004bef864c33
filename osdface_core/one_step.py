"""The one diffusion step: encode, predict the noise at timestep T_L, Eq. 2, decode (paper Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .choices import Posterior
from .config import CodecConfig, OSDFaceConfig
from .errors import OptionError
from .models.backbone import Backbone


@dataclass(frozen=True)
class OneStepRestorer:
    """Restores signed faces with their prompts; what it runs on is the backbone's business.

    Attributes:
        config: T_L and the noise schedule.
        backbone: latent codec and noise predictor.
    """

    config: OSDFaceConfig
    backbone: Backbone

    def __call__(
        self,
        signed: Tensor,
        prompt: Tensor | Callable[[Tensor], Tensor],
        *,
        timestep: int | None = None,
        fidelity: float = 1.0,
        posterior: Posterior = "mode",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Restore a batch.

        Args:
            signed: (B, 3, H, W) float32 in [-1, 1], on the device of the model.
            prompt: (B, 77, D); or what makes it from `signed`, which runs beside the codec's encoder on CUDA.
            timestep: [steps]; None takes the config's T_L.
            fidelity: see `LatentCodec.decode`.
            posterior, generator: see `LatentCodec.encode`.
        Returns:
            (B, 3, H, W) float32, about [-1, 1], not clamped; sides rounded down to multiples of 8.
        """
        main = torch.cuda.current_stream(signed.device) if signed.is_cuda else None
        side = torch.cuda.Stream(signed.device) if main else None
        if main and side:
            side.wait_stream(main)
        # The VRE and the codec's encoder do not depend on each other (supplement B: 14 % faster).
        with torch.cuda.stream(side) if side else nullcontext():
            prompt = prompt.to(signed.device) if isinstance(prompt, Tensor) else prompt(signed)
        latent = self.encode(signed, posterior, generator)
        if main and side:
            main.wait_stream(side)
            prompt.record_stream(main)
        restored = self.denoise(latent, prompt, timestep)
        kept = fidelity and fidelity * trust(self.config.codec, restored - latent)
        return self.decode(restored, signed, kept)

    def encode(
        self, signed: Tensor, posterior: Posterior = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode signed faces to scaled latents z_L (B, C, H/8, W/8)."""
        return self.backbone.codec.encode(signed, posterior, generator)

    def denoise(self, latent: Tensor, prompt: Tensor, timestep: int | None = None) -> Tensor:
        """Predict the restored latent z_H (B, C, h, w), float32, from z_L and the prompt (Eq. 2)."""
        step = self.config.timestep if timestep is None else timestep
        return predict_x0(latent, self.backbone.predictor(latent, step, prompt), alpha_bar(self.config, step))

    def decode(self, latent: Tensor, guide: Tensor, fidelity: float | Tensor = 1.0) -> Tensor:
        """Decode restored latents to (B, 3, 8h, 8w) float32; `guide` is the low-quality face, signed."""
        return self.backbone.codec.decode(latent, guide, fidelity).float()


@lru_cache(maxsize=256)
def alpha_bar(config: OSDFaceConfig, timestep: int | None = None) -> float:
    """Compute the cumulative product of (1 - beta) of Stable Diffusion's scaled-linear schedule.

    Args:
        timestep: [steps], 0 .. train_timesteps-1; None takes the config's T_L.
    Returns:
        0.42609 at T_L = 399 for the released model.
    Raises:
        OptionError: the timestep lies outside the schedule.
    """
    t = config.timestep if timestep is None else timestep
    if not 0 <= t < config.train_timesteps:
        raise OptionError("timestep", t, f"0..{config.train_timesteps - 1}")
    # Built on the CPU in float32, as the schedule's published values are.
    ends = (config.beta_start**0.5, config.beta_end**0.5)
    roots = torch.linspace(*ends, config.train_timesteps, dtype=torch.float32, device="cpu")
    return float(torch.cumprod(1.0 - roots.square(), dim=0)[t])


def predict_x0(latent: Tensor, eps: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """Compute z_H = (z_L - sqrt(1 - a) * eps) / sqrt(a), in float32.

    Args:
        latent: (B, C, h, w), scaled latent of the low-quality face; no noise is added to it.
        eps: (B, C, h, w), predicted noise.
        alpha_bar: cumulative alpha at the timestep, in (0, 1].
    Returns:
        (B, C, h, w), float32.
    Source: OSDFace Eq. 2. The released code uses float64, which MPS lacks; float32 agrees to 1e-6.
    """
    return (latent.float() - (1.0 - alpha_bar) ** 0.5 * eps.float()) / alpha_bar**0.5


def trust(codec: CodecConfig, change: Tensor) -> Tensor:
    """Weigh guides, (B, 1, 1, 1), by z_H - z_L, (B, C, h, w): of a repainted face less is worth keeping."""
    start, end = codec.repainted
    fall = (change.square().mean((1, 2, 3), keepdim=True).sqrt() - start) / (end - start)
    return 1.0 - (1.0 - codec.least_fidelity) * fall.clamp(0.0, 1.0)
