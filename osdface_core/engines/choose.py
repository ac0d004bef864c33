"""From an engine's name to a changed pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..devices import cpu_has_bf16
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..pipeline import OSDFacePipeline

ENGINES = ("auto", "eager", "fast", "graphs")


def use_engine(pipeline: OSDFacePipeline, engine: str) -> None:
    """Make `pipeline` run through `engine`, in place; the VRE, and so its tokens, stay as they are.

    Args:
        engine: auto: fast on CPUs that compute in float32, eager elsewhere. eager: PyTorch as it comes. fast:
            fewer operations on the CPU. graphs: CUDA graphs, one launch per batch.
    Raises:
        ConfigError: an unknown name, or an engine that this device or installation lacks.
    """
    if engine == "auto":
        native = pipeline.dtype == torch.bfloat16 and cpu_has_bf16()
        engine = "fast" if pipeline.device.type == "cpu" and not native else "eager"
    if engine == "eager":
        return
    if engine == "fast":
        from .fast import KeptMemoryForward, speed_up
        from .winograd import Workspace

        if pipeline.device.type != "cpu":
            raise ConfigError(f"--engine fast is for the CPU, not {pipeline.device}; use --engine eager")
        weights, workspace = pipeline.dtype, Workspace()
        for part in (pipeline.backbone.codec, pipeline.backbone.predictor):
            if isinstance(part, nn.Module):
                pipeline.dtype = speed_up(part, weights, workspace)
        if weights == torch.float32:  # half precision is chosen to save memory
            pipeline.forward = KeptMemoryForward(pipeline.forward)
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
