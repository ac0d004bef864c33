"""What one diffusion step needs: a latent codec and a noise predictor, and diffusers' versions of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..choices import Posterior


class LatentCodec(Protocol):
    """Between pictures in [-1, 1] and scaled latents, of any floating type; it casts to its own."""

    def encode(
        self, signed: Tensor, posterior: Posterior = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode (B, 3, H, W) to (B, 4, H//8, W//8), multiplied by the scaling factor."""
        ...

    def decode(self, latent: Tensor, guide: Tensor | None = None, fidelity: float | Tensor = 1.0) -> Tensor:
        """Decode (B, 4, h, w) to (B, 3, 8h, 8w), not clamped.

        Args:
            guide: the low-quality face in [-1, 1], for codecs with a fidelity branch; others ignore it.
            fidelity: 0..1, how much of the guide that branch may take over; (B, 1, 1, 1) by face.
        """
        ...


class NoisePredictor(Protocol):
    """The noise that a diffusion model sees in a latent; it casts its input to its own floating type."""

    def __call__(self, latent: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        """(B, 4, h, w), timestep [steps], (B, 77, D) to (B, 4, h, w)."""
        ...


@dataclass(frozen=True)
class Backbone:
    """The two protocols together."""

    codec: LatentCodec
    predictor: NoisePredictor


def try_shapes(backbone: Backbone, prompt_width: int) -> None:
    """Send a picture through modules on the meta device, which computes shapes alone.

    Raises:
        ValueError: what comes out is not what went in; or whatever the layers raise.
    """
    picture = torch.zeros(1, 3, 512, 512, device="meta")
    latent = backbone.codec.encode(picture)
    eps = backbone.predictor(latent, 0, torch.zeros(1, 77, prompt_width, device="meta"))
    back = backbone.codec.decode(latent, picture)
    if eps.shape != latent.shape or back.shape != picture.shape:
        shapes = ", ".join(str(tuple(value.shape)) for value in (picture, latent, eps, back))
        raise ValueError(f"picture, latent, noise and picture are {shapes}")


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the floating type of a module's weights."""
    return next(module.parameters()).dtype


class UNetPredictor(nn.Module):
    """A diffusers UNet2DConditionModel as `NoisePredictor`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latent: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        # A tensor of the batch's size: diffusers would copy a Python number to the device and wait for it.
        steps = torch.full((latent.shape[0],), timestep, device=latent.device, dtype=torch.long)
        dtype = dtype_of(self)
        latent, prompt = latent.to(dtype), prompt.to(dtype)
        return self.unet(latent, steps, encoder_hidden_states=prompt, return_dict=False)[0]


class KLCodec(nn.Module):
    """A diffusers AutoencoderKL as `LatentCodec`; `mode` is deterministic, `sample` draws the posterior."""

    def __init__(self, vae: nn.Module, scaling_factor: float) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = scaling_factor

    def encode(
        self, signed: Tensor, posterior: Posterior = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        distribution: Any = self.vae.encode(signed.to(dtype_of(self))).latent_dist  # type: ignore[operator]
        latent = distribution.mode() if posterior == "mode" else distribution.sample(generator)
        return latent * self.scaling_factor

    def decode(self, latent: Tensor, guide: Tensor | None = None, fidelity: float | Tensor = 1.0) -> Tensor:
        latent = latent.to(dtype_of(self)) / self.scaling_factor
        return self.vae.decode(latent, return_dict=False)[0]  # type: ignore[operator]
