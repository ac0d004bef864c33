"""From an engine's name to a changed pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..devices import cpu_has_bf16
from ..errors import ConfigError
from .compiled import halves
from .half import HalfLayers
from .layers import Layers
from .native import NativeLayers

if TYPE_CHECKING:
    from ..pipeline import OSDFacePipeline

MANY = 1 << 28  # weights of a large model
ENGINES = ("auto", "eager", "fast", "native", "graphs")


def use_engine(pipeline: OSDFacePipeline, engine: str) -> None:
    """Make `pipeline` run through `engine`, in place; the VRE, and so its tokens, stay as they are.

    Args:
        engine: auto: fast on CPUs that compute in float32, eager elsewhere. eager: PyTorch as it comes. fast:
            fewer operations on the CPU. native: the same in C++, compiled at the first use; weights in half
            precision are multiplied as such where the CPU does so faster. graphs: CUDA graphs, one launch per
            batch.
    Raises:
        ConfigError: an unknown name, or an engine that this device or installation lacks.
    """
    if engine == "auto":
        native = pipeline.dtype == torch.bfloat16 and cpu_has_bf16()
        engine = "fast" if pipeline.device.type == "cpu" and not native else "eager"
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}; use one of {', '.join(ENGINES)}")
    if engine in ("fast", "native"):
        if pipeline.device.type != "cpu":
            raise ConfigError(f"--engine {engine} is for the CPU, not {pipeline.device}; use --engine eager")
        _use_fast(pipeline, engine)
    if engine == "graphs":
        from .graphs import GraphedForward

        if pipeline.device.type != "cuda":
            raise ConfigError(
                f"--engine graphs needs a CUDA device, not {pipeline.device}; use --engine eager"
            )
        pipeline.forward = GraphedForward(pipeline.forward)
    pipeline.engine = engine


def _use_fast(pipeline: OSDFacePipeline, engine: str) -> None:
    from .arena import KEPT, KEPT_OF_HALF, nothing_kept
    from .fast import KeptMemoryForward, speed_up

    weights = pipeline.dtype
    layers, saving = _layers(engine, weights), _saves_memory(pipeline)
    with nothing_kept():
        for part in _modules(pipeline):
            pipeline.dtype = speed_up(part, weights, layers)
    pipeline.forward = KeptMemoryForward(pipeline.forward, KEPT_OF_HALF if saving else KEPT)
    if saving and isinstance(pipeline.backbone.predictor, nn.Module):
        # The decoder, which comes next, takes the most.
        pipeline.backbone.predictor.register_forward_hook(lambda *_: layers.workspace.release())


def _modules(pipeline: OSDFacePipeline) -> list[nn.Module]:
    parts = (pipeline.backbone.codec, pipeline.backbone.predictor)
    return [part for part in parts if isinstance(part, nn.Module)]


def _saves_memory(pipeline: OSDFacePipeline) -> bool:
    """Whether half precision was chosen for that, which costs a little time: not with small models."""
    weights = sum(parameter.numel() for part in _modules(pipeline) for parameter in part.parameters())
    return pipeline.dtype != torch.float32 and weights >= MANY


def _layers(engine: str, weights: torch.dtype) -> Layers:
    """Raises ConfigError where native cannot be compiled: here, not in the middle of a picture."""
    if engine == "fast":
        return Layers()
    return HalfLayers() if halves() and weights != torch.float32 else NativeLayers()
