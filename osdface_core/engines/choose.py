"""From an engine's name to the engine."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..choices import EngineName, check_choice
from ..devices import cpu_multiplies_bf16
from ..errors import ConfigError
from ..models.backbone import Backbone, dtype_of
from .engine import Engine, wrapped

log = logging.getLogger(__name__)


def choose_engine(name: EngineName, device: torch.device) -> Engine:
    """Return the engine of that name for a model on `device`.

    Args:
        name: as `engine` in options.py says.
    Raises:
        ConfigError: an unknown name, or an engine that this device or installation lacks.
    """
    check_choice("engine", name, EngineName)
    beside = device.type != "cpu"  # PyTorch's layers and other work wait for each other on shared cores
    if name == "auto":
        name = _quickest(device)
    if name == "native":
        return _native(device)
    if name == "graphs":
        from . import graphs

        if device.type != "cuda":
            raise ConfigError(f"`engine` graphs needs a CUDA device, not {device}; use `engine` eager")
        return Engine(name, beside, graphs.prepare)
    if name == "compile":
        return Engine(name, beside, _compiled)
    return Engine(name, beside, lambda backbone: backbone)


def _quickest(device: torch.device) -> EngineName:
    if device.type != "cpu":
        return "eager"
    if _osdface_cpu():
        return "native"
    log.info("the package osdface-cpu halves the time on this CPU: pip install ./cpu in OSDFace's folder")
    return "eager"


def _osdface_cpu() -> ModuleType | None:
    """The optional package with the compiled layers; None where it is missing or cannot be loaded."""
    try:
        import osdface_cpu

        osdface_cpu.check()
    except (ImportError, OSError) as error:
        log.debug("no osdface-cpu: %s", error)
        return None
    return osdface_cpu


def _native(device: torch.device) -> Engine:
    package = _osdface_cpu()
    if device.type != "cpu":
        raise ConfigError(f"`engine` native is for the CPU, not {device}; use `engine` eager")
    if package is None:
        raise ConfigError(
            "`engine` native needs the package osdface-cpu: pip install ./cpu in OSDFace's folder, or use "
            "`engine` eager"
        )

    def faster(part: Any, predicts: bool = False) -> Any:
        if not isinstance(part, nn.Module):
            return part
        # A UNet gains little from Winograd, so PyTorch's own bfloat16 is ahead where the CPU is good at it.
        own = predicts and dtype_of(part) == torch.bfloat16 and cpu_multiplies_bf16()
        return part if own else package.prepare(part)

    return Engine(
        "native",
        True,
        lambda backbone: Backbone(faster(backbone.codec), faster(backbone.predictor, predicts=True)),
        lambda prepared: package.give_back(prepared.codec, prepared.predictor),
    )


def _compiled(backbone: Backbone) -> Backbone:
    # The method: PyTorch leaves a mark on a module that it is given itself.
    return wrapped(backbone, lambda part: torch.compile(getattr(part, "forward", part), dynamic=False))
