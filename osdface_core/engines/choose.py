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

ENGINES = ("auto", "eager", "fast", "native", "graphs")


def use_engine(pipeline: OSDFacePipeline, engine: str) -> None:
    """Make `pipeline` run through `engine`, in place; the VRE, and so its tokens, stay as they are.

    Args:
        engine: auto: fast on CPUs that compute in float32, eager elsewhere. eager: PyTorch as it comes. fast:
            fewer operations on the CPU. native: the same in C++, compiled at the first use. graphs: CUDA
            graphs, one launch per batch.
    Raises:
        ConfigError: an unknown name, or an engine that this device or installation lacks.
    """
    if engine == "auto":
        native = pipeline.dtype == torch.bfloat16 and cpu_has_bf16()
        engine = "fast" if pipeline.device.type == "cpu" and not native else "eager"
    if engine == "eager":
        return
    if engine in ("fast", "native"):
        if pipeline.device.type != "cpu":
            raise ConfigError(f"--engine {engine} is for the CPU, not {pipeline.device}; use --engine eager")
        _use_fast(pipeline, engine)
        return
    if engine == "graphs":
        from .graphs import GraphedForward

        if pipeline.device.type != "cuda":
            raise ConfigError(
                f"--engine graphs needs a CUDA device, not {pipeline.device}; use --engine eager"
            )
        pipeline.forward = GraphedForward(pipeline.forward)
        return
    raise ConfigError(f"unknown engine {engine!r}; use one of {', '.join(ENGINES)}")


def _use_fast(pipeline: OSDFacePipeline, engine: str) -> None:
    from .arena import KEPT, KEPT_OF_HALF, nothing_kept
    from .fast import KeptMemoryForward, speed_up

    weights = pipeline.dtype
    layers = _layers(engine, weights)
    with nothing_kept():
        for part in (pipeline.backbone.codec, pipeline.backbone.predictor):
            if isinstance(part, nn.Module):
                pipeline.dtype = speed_up(part, weights, layers)
    pipeline.forward = KeptMemoryForward(pipeline.forward, KEPT if weights == torch.float32 else KEPT_OF_HALF)
    if weights != torch.float32 and isinstance(pipeline.backbone.predictor, nn.Module):
        # Half precision is chosen to save memory, and the decoder, which comes next, takes the most.
        pipeline.backbone.predictor.register_forward_hook(lambda *_: layers.workspace.release())


def _layers(engine: str, weights: torch.dtype) -> Layers:
    """Raises ConfigError where native cannot be compiled: here, not in the middle of a picture."""
    if engine == "fast":
        return Layers()
    return HalfLayers() if halves() and weights != torch.float32 else NativeLayers()
