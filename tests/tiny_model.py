"""A complete random model, small enough for tests: every part of the released structure, few channels."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def write_tiny(target: Path, seed: int = 0) -> Path:
    """Write a self-contained checkpoint with random weights."""
    core = _core()
    config_module, vre = core("config"), core("vre")
    config = config_module.OSDFaceConfig(
        arch="full",
        name="tiny",
        vre=config_module.VREConfig(
            resolution=128, base_channels=8, channel_multipliers=(1, 1, 2, 2), res_blocks=1,
            attention_resolutions=(16,), z_channels=16, codebook_size=96, norm_groups=4, input_range=(-1.0, 1.0),
        ),
        projection=config_module.ProjectionConfig(hidden=16, out=32),
        unet=config_module.UNetConfig((16, 16), (True, False), attention_head_dim=8, norm_groups=4),
        codec=config_module.CodecConfig(kind="tiny", channels=8, decoder_blocks=(1, 1, 1, 1)),
        lora=None,
    )  # fmt: skip
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        backbone = core("backbone").build_full(config)
        parts: dict[str, Any] = {
            "vre": vre.VRE(config.vre),
            "projection": vre.Projection(config.vre.z_channels, config.projection),
            "unet": backbone.predictor.unet,
            "codec": backbone.codec,
        }
        tensors = {f"{p}.{k}": v.clone() for p, module in parts.items() for k, v in module.state_dict().items()}
    core("checkpoint").save_checkpoint(target, tensors, config, {"recipe": "random"})
    return target


def _core() -> Any:
    """Import a module of the core from this checkout, without leaving its root on sys.path."""

    def load(name: str) -> Any:
        sys.path.insert(0, str(ROOT))
        try:
            return importlib.import_module(f"osdface_core.{name}")
        finally:
            sys.path.remove(str(ROOT))

    return load
