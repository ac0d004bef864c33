# pyright: reportMissingImports=false
"""What can be chosen in the web UI: models in models/OSDFace, bases among the web UI's own checkpoints."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from modules import paths, sd_models

from osdface_core.app import models
from osdface_core.errors import CheckpointError

MODELS = Path(paths.models_path) / "OSDFace"
NO_BASE = "none"
PROMPT_WIDTH = 1024  # of Stable Diffusion 2; SD 1.x has 768, SDXL 2048
CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def model_names() -> list[str]:
    """List `mini`, checkpoints in models/OSDFace, and folders there with the three released files."""
    return models.model_names(MODELS)


def model_path(name: str) -> str | Path:
    """Find the model behind a name of `model_names`. Raises CheckpointError: any other name."""
    return models.model_path(name, MODELS)


def base_names() -> list[str]:
    """List those of the web UI's checkpoints that a LoRA can use: Stable Diffusion 2.x in .safetensors."""
    plausible = (info.name for info in sd_models.checkpoints_list.values() if _is_sd2(info.filename))
    return [NO_BASE, *sorted(plausible)]


def base_path(name: str) -> str | None:
    """Find the file behind a base, by any of the names that the web UI knows it by, with a hash or without.

    Raises:
        CheckpointError: the web UI has no such checkpoint.
    """
    if name == NO_BASE:
        return None
    info: Any = sd_models.get_closet_checkpoint_match(name)
    if info is None:
        raise CheckpointError(f"the web UI has no checkpoint {name}: choose the base again")
    return info.filename


def _is_sd2(filename: str) -> bool:
    path = Path(filename)
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    return _prompt_width(filename, path.stat().st_mtime_ns) == PROMPT_WIDTH


@cache
def _prompt_width(filename: str, changed: int) -> int:
    """Read the width of prompts from a checkpoint's header; 0 if it has none."""
    from safetensors import SafetensorError, safe_open

    del changed  # part of the key: a replaced file is read again
    try:
        with safe_open(filename, framework="pt") as file:
            return file.get_slice(CROSS_ATTENTION).get_shape()[-1]
    except (SafetensorError, OSError):
        return 0
