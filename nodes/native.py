"""ComfyUI's own MODEL and VAE as the core's two protocols: no second copy of Stable Diffusion in memory.

ComfyUI's model call takes x = z * sqrt(1 + s^2) with s^2 = (1 - a) / a, divides by that root again before the
UNet, and returns x - s * eps for a noise-predicting model; so eps = (x - answer) / s exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import host

PROMPT_DIM = 1024


class SocketCodec:
    """A VAE socket as `LatentCodec`. It loads, batches and (out of memory) tiles by itself.

    Args:
        vae: ComfyUI's VAE; its posterior is the mode, `sample` is not offered there.
        model: ComfyUI's BaseModel, whose latent format holds the scaling factor.
    """

    def __init__(self, vae: Any, model: Any) -> None:
        self.vae = vae
        self.model = model

    def encode(
        self, signed: Tensor, posterior: str = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode (B, 3, H, W) in [-1, 1] as scaled latents (B, 4, H//8, W//8) on the same device."""
        if posterior != "mode":
            raise ValueError("posterior 'sample' is not available with a VAE socket: use 'mode'")
        height, width = (side // 8 * 8 for side in signed.shape[-2:])
        pixels = (signed[..., :height, :width].float() + 1.0) / 2.0
        latent = self.vae.encode(pixels.permute(0, 2, 3, 1))
        return self.model.process_latent_in(latent).to(signed.device)

    def decode(self, latent: Tensor, guide: Tensor | None = None, fidelity: float | Tensor = 1.0) -> Tensor:
        """Decode (B, 4, h, w) to (B, 3, 8h, 8w) in [-1, 1] (ComfyUI clamps)."""
        pixels = self.vae.decode(self.model.process_latent_out(latent.float()))
        return pixels.permute(0, 3, 1, 2).to(latent.device) * 2.0 - 1.0


class SocketPredictor:
    """A MODEL socket as `NoisePredictor`: one UNet call with all its patches at work."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, latent: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        """(B, 4, h, w), [steps], (B, 77, 1024) to the predicted noise (B, 4, h, w), float32."""
        device = host.load_model(self.model, self.model.memory_required(list(latent.shape)))
        self.model.pre_run()
        try:
            return self._noise(latent.to(device, torch.float32), timestep, prompt.to(device)).to(
                latent.device
            )
        finally:
            self.model.cleanup()

    def _noise(self, latent: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        sigma = self.model.get_model_object("model_sampling").sigmas[timestep].to(latent)
        x = latent * (1.0 + sigma**2) ** 0.5
        sigmas = sigma.expand(latent.shape[0])
        options = host.transformer_options(self.model) | {"cond_or_uncond": [0], "sigmas": sigmas}
        call = {"c_crossattn": prompt, "transformer_options": options}
        wrapper = self.model.model_options.get("model_function_wrapper")
        if wrapper is None:
            denoised = self.model.model.apply_model(x, sigmas, **call)
        else:
            inputs = {"input": x, "timestep": sigmas, "c": call, "cond_or_uncond": [0]}
            denoised = wrapper(self.model.model.apply_model, inputs)
        return (x - denoised.float()) / sigma


def check_model(model: Any) -> None:
    """Refuse what is no Stable Diffusion 2.1-base.

    Raises:
        ValueError: one line that names what the MODEL is.
    """
    kind = getattr(getattr(model.model, "model_type", None), "name", "unknown")
    if kind == "V_PREDICTION":
        raise ValueError(
            "this MODEL predicts v (the 768-pixel Stable Diffusion 2.1): load 2.1-base, "
            "v2-1_512-ema-pruned.safetensors"
        )
    width = model.model.model_config.unet_config.get("context_dim")
    if kind != "EPS" or width != PROMPT_DIM:
        raise ValueError(
            f"this MODEL is no Stable Diffusion 2.1-base (prediction {kind}, prompt width {width}; "
            f"needed EPS, {PROMPT_DIM}): load v2-1_512-ema-pruned.safetensors"
        )


def warn_partial_lora(model: Any) -> bool:
    """Log one line and return True if the patches on MODEL skip the attention that a released LoRA has.

    ComfyUI's own LoRA loaders do not know the key style in which that file stores its attention layers
    (`….to_q.lora.up.weight`) and load the rest: a plausible but wrong result.
    """
    keys = [k if isinstance(k, str) else k[0] for k in model.patches]
    partial = any(".ff.net." in k for k in keys) and not any(".to_q." in k or ".to_k." in k for k in keys)
    if partial:
        host.log.warning(
            "the LoRA on this MODEL has no attention layers: load it with 'OSDFace Apply LoRA' instead"
        )
    return partial
