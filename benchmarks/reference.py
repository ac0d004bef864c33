"""The released code's own prompt side, imported from a checkout that the user names; none of it is ours."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from osdface_core.config import VREConfig
from osdface_core.errors import ConfigError
from osdface_core.models.vre import VRE

PACKAGE = "lq_embed"  # the checkout's package with the encoder
PREFIX = "vqvae_LQ."  # of its checkpoint's keys


def prompt_side(checkout: Path, vre: VRE, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Wrap the checkout's encoder with this model's weights: (1, 3, H, W) signed to codes.

    The rest of the released pipeline is diffusers' modules, which both sides share.

    Raises:
        ConfigError: no checkout there, its imports fail, or the model has other sizes than it supports.
    """
    if not (checkout / PACKAGE / "__init__.py").is_file():
        raise ConfigError(
            f"--reference {checkout}: no {PACKAGE}/ in it; give a checkout of the released inference code"
        )
    if vre.cfg != VREConfig():
        raise ConfigError("--reference runs the released sizes only; use --full-size or a released model")
    encoder = _encoder(checkout, vre)
    encoder.to(device).eval()
    return lambda signed: encoder(signed).reshape(len(signed), vre.cfg.tokens, -1)


def _encoder(checkout: Path, vre: VRE) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        # Its constructor reads a Lightning file, so the weights take that way.
        weights = Path(folder) / "vre.ckpt"
        torch.save(
            {"state_dict": {PREFIX + k: v.cpu() for k, v in vre.state_dict().items()}},
            weights,
        )
        options = argparse.Namespace(
            img_encoder_weight=str(weights),
            cat_prompt_embedding=False,
            use_pos_embedding=False,
            learnable_pos_emb=False,
            use_att_pool=False,
        )
        sys.path.insert(0, str(checkout.resolve()))
        try:
            return importlib.import_module(PACKAGE).vqvae_encoder(options)
        except (ImportError, AttributeError, TypeError, RuntimeError) as error:
            raise ConfigError(
                f"--reference {checkout} does not run: {' '.join(str(error).split())}"
            ) from error
        finally:
            sys.path.remove(str(checkout.resolve()))
