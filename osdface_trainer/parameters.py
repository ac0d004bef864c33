"""Steps and parameters of a stage, and the memory they take: part of `osdface train --dry-run`.

Networks are built on the meta device (shapes without data).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .recipe.config import Recipe, StageName

MEASURED = (
    "the losses' networks and activations come on top (batch, size, recomputation); the peak is measured by\n"
    "    python -m osdface_trainer.restorer.benchmark RECIPE\n"
    "  measured so far: paper with every network of its real size, batch 2 at 128 px, bf16 on a CPU: 4.8 GB"
)


def describe(recipe: Recipe, stage: StageName) -> str:
    """Write steps by phase and parameters by network as text [MB = 10^6 bytes].

    Raises:
        ConfigError: nothing says which architecture is trained.
    """
    networks = _vre_networks(recipe) if stage == "vre" else _restorer_networks(recipe)
    phases = recipe.phases(stage)
    steps = ", ".join(f"{name} {count:,}" for name, count in phases.items())
    rows = [("network", "trained", "frozen")]
    rows += [(name, *(f"{count:,}" for count in count_parameters(net))) for name, net in networks.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows]
    averaged = stage == "restorer" and recipe.restorer.ema > 0
    notes = [f"  {MEASURED}"] if stage == "restorer" else []
    held = _held_bytes(networks, averaged=averaged) / 1e6
    what = "weights, gradients, Adam's moments" + (" and average" if averaged else "")
    head = f"{stage}: {sum(phases.values()):,} steps ({steps})"
    return "\n".join([head, *lines, f"  {what}: {held:,.0f} MB", *notes])


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Count trained and frozen parameters."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in module.parameters()) - trained


def _held_bytes(networks: Mapping[str, nn.Module], *, averaged: bool) -> int:
    """Sum bytes that stay through a step; networks may share frozen parameters."""
    parameters = {id(p): p for net in networks.values() for p in net.parameters()}.values()
    generator = {
        id(p) for name, net in networks.items() if "discriminator" not in name for p in net.parameters()
    }
    trained = [p for p in parameters if p.requires_grad]
    average = sum(4 * p.numel() for p in trained if id(p) in generator) if averaged else 0
    return sum(p.nbytes for p in parameters) + sum(12 * p.numel() for p in trained) + average


def _vre_networks(recipe: Recipe) -> dict[str, nn.Module]:
    from .vre.autoencoder import build_networks

    networks: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for name in ("hq", "lq"):
            net, discriminator = build_networks(recipe.vre)
            networks |= {f"{name} autoencoder": net, f"{name} discriminator": discriminator}
    return networks


def _restorer_networks(recipe: Recipe) -> dict[str, nn.Module]:
    from .losses.features import untrained_features
    from .restorer.benchmark import random_initial
    from .restorer.discriminators import build_networks

    with torch.device("meta"):
        initial = random_initial(recipe, torch.device("meta"))
    core: Any = initial.generator
    networks = {
        "VRE": core.prompt.vre, "projection": core.prompt.projection,
        "UNet": core.predictor, "codec": core.codec,
    }  # fmt: skip
    judges = build_networks(recipe, initial, lambda net, file: untrained_features(net))
    return networks | {f"{name} discriminator": net for name, net in judges.items()}
