"""From an engine's name to the engine."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from ..models.backbone import Backbone
from .engine import Engine, wrapped

ENGINES = ("auto", "eager", "graphs", "compile")


def choose_engine(name: str, device: torch.device) -> Engine:
    """Return the engine of that name for a model on `device`.

    Args:
        name: auto: eager. eager: PyTorch as it comes. graphs: CUDA graphs, one launch instead of hundreds.
            compile: `torch.compile`, which takes minutes at the first face of a size.
    Raises:
        ConfigError: an unknown name, or an engine that this device lacks.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}; use one of {', '.join(ENGINES)}")
    overlaps = device.type != "cpu"
    if name == "graphs":
        from . import graphs

        if device.type != "cuda":
            raise ConfigError(f"--engine graphs needs a CUDA device, not {device}; use --engine eager")
        return Engine(name, overlaps, graphs.prepare)
    if name == "compile":
        return Engine(name, overlaps, _compiled)
    return Engine("eager", overlaps, lambda backbone: backbone)


def _compiled(backbone: Backbone) -> Backbone:
    # The method: PyTorch leaves a mark on a module that it is given itself.
    return wrapped(backbone, lambda part: torch.compile(getattr(part, "forward", part), dynamic=False))
