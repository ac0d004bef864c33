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
    config_module, vre = core("config"), core("models.vre")
    config = config_module.OSDFaceConfig(
        arch="full",
        name="tiny",
        vre=config_module.VREConfig(
            resolution=128, base_channels=8, channel_multipliers=(1, 1, 2, 2), res_blocks=1,
            attention_resolutions=(16,), z_channels=16, codebook_size=96, norm_groups=4,
            input_range=(-1.0, 1.0),
        ),
        projection=config_module.ProjectionConfig(hidden=16, out=32),
        unet=config_module.UNetConfig((8, 16, 16), (False, False, True), attention_head_dim=8, norm_groups=4),
        codec=config_module.CodecConfig(kind="tiny", channels=4, decoder_blocks=(1, 1, 1, 1)),
        lora=None,
    )  # fmt: skip
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        backbone = core("models.full").build_full(config)
        parts: dict[str, Any] = {
            "vre": vre.VRE(config.vre),
            "projection": vre.Projection(config.vre.z_channels, config.projection),
            "unet": backbone.predictor.unet,
            "codec": backbone.codec,
        }
        lively(parts)
        tensors = {
            f"{p}.{k}": v.clone() for p, module in parts.items() for k, v in module.state_dict().items()
        }
    core("checkpoint").save_checkpoint(target, tensors, config, {"recipe": "random"})
    return target


def lively(parts: dict[str, Any]) -> None:
    """Raise what fresh weights leave near zero, so that tokens, timestep and prompt show in the picture."""
    with torch.no_grad():
        codec, unet = parts["codec"], parts["unet"]
        codec.decoder.layers[-1].bias.fill_(
            0.5
        )  # mid grey: the decoder answers in [0, 1] before its last scaling
        codec.decoder.layers[-1].weight.mul_(40.0)
        codec.encoder.layers[-1].weight.mul_(40.0)
        parts["projection"].conv1.weight.mul_(20.0)
        parts["projection"].conv2.weight.mul_(20.0)
        unet.conv_out.weight.mul_(3.0)
        for name, weight in unet.named_parameters():
            if "attn2.to_out" in name or "attn2.to_v" in name or "time_emb_proj" in name:
                weight.mul_(6.0)


def _core() -> Any:
    """Import a module of the core from this checkout, without leaving its root on sys.path."""

    def load(name: str) -> Any:
        sys.path.insert(0, str(ROOT))
        try:
            return importlib.import_module(f"osdface_core.{name}")
        finally:
            sys.path.remove(str(ROOT))

    return load
