"""OSDFace LoRA files in the key style that ComfyUI knows for every layer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..osdface_core.checkpoint import load_checkpoint
from ..osdface_core.config import LoRAConfig
from ..osdface_core.errors import CheckpointError
from ..osdface_core.models.lora import Factors, parse_lora


def read_lora(path: str) -> tuple[dict[str, Factors], float]:
    """Read the adapters in a file and their alpha.

    Args:
        path: a bare LoRA file (alpha as in the release), or an OSDFace checkpoint that holds one.
    Raises:
        CheckpointError: unreadable, or nothing of a LoRA in it.
    """
    name = Path(path).name
    try:
        with safe_open(path, framework="pt") as file:
            ours = "osdface.format" in (file.metadata() or {})
            tensors = {} if ours else {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{name} is truncated or no safetensors file ({error}); download it again"
        ) from error
    alpha = LoRAConfig().alpha
    if ours:
        checkpoint = load_checkpoint(path)
        if checkpoint.config.lora and checkpoint.config.lora.encoder:
            raise CheckpointError(
                f"{name} adapts the VAE's encoder too, which a MODEL does not hold; use Load Restorer"
            )
        tensors = checkpoint.part("lora")
        alpha = checkpoint.config.lora.alpha if checkpoint.config.lora else alpha
    if not tensors:
        raise CheckpointError(f"{name} holds no LoRA; load a self-contained checkpoint with Load Restorer")
    return parse_lora(tensors), alpha


def to_comfyui(lora: dict[str, Factors], alpha: float) -> dict[str, Tensor]:
    """Rename to `lora_unet_<layer>.lora_down.weight`, `.lora_up.weight`, `.alpha`, scaled by alpha / rank."""
    state = {}
    for module, factors in lora.items():
        stem = "lora_unet_" + module.replace(".", "_")
        state[f"{stem}.lora_down.weight"] = factors.down
        state[f"{stem}.lora_up.weight"] = factors.up
        state[f"{stem}.alpha"] = torch.tensor(alpha)
    return state
