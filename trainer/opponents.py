"""Builds the discriminators that a recipe switches on."""

from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from osdface_core.config import OSDFaceConfig
from osdface_core.losses.diffusion_discriminator import DiffusionDiscriminator, Noiser, add_lora
from osdface_core.losses.discriminators import FeatureDiscriminator, PatchDiscriminator

from .config import Recipe
from .gan import LatentOpponent, Opponent, PixelOpponent
from .generator import unet_blocks
from .initial import Initial
from .objectives import Networks
from .restorer_config import GANs


def build_opponents(
    recipe: Recipe, accelerator: Accelerator, initial: Initial, networks: Networks
) -> list[Opponent]:
    """Those whose weight is above 0, on the device.

    Raises:
        CheckpointError: the frozen network of `feature` is missing.
    """
    cfg = recipe.restorer.gan
    found: list[Opponent] = []
    if initial.trunk is not None:
        net = diffusion_discriminator(initial.trunk, initial.generator.config, cfg)
        blocks = unet_blocks(net.unet)
        found.append(LatentOpponent("diffusion", cfg.diffusion, _layout(net, recipe), accelerator, blocks))
    if cfg.feature.weight > 0:
        table = cfg.feature
        weights = networks.features(table.net, table.file)
        net = FeatureDiscriminator(table.net, weights, table.levels or None, table.width)
        found.append(PixelOpponent("feature", table, _layout(net, recipe), accelerator))
    if cfg.patch.weight > 0:
        table = cfg.patch
        norm = "none" if table.spectral else "batch"
        net = PatchDiscriminator(table.width, table.layers, norm, table.spectral)
        found.append(PixelOpponent("patch", table, _layout(net, recipe), accelerator))
    return found


def diffusion_discriminator(trunk: nn.Module, config: OSDFaceConfig, cfg: GANs) -> DiffusionDiscriminator:
    """Down and middle blocks with a head, with LoRA or trained whole (paper §3.3)."""
    table = cfg.diffusion
    if table.train == "lora":
        assert config.lora is not None
        add_lora(trunk, table.rank, table.alpha, config.lora.targets)
    return DiffusionDiscriminator(trunk, noiser(config), table.hidden)


def noiser(config: OSDFaceConfig) -> Noiser:
    """Stable Diffusion's forward process."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
    )
    return cast(Noiser, scheduler)


def _layout(net: nn.Module, recipe: Recipe) -> nn.Module:
    return net.to(memory_format=torch.channels_last) if recipe.run.channels_last else net
