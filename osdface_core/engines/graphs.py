"""CUDA graphs: the kernels of a batch recorded once per shape and launched together.

At batch 1 a small GPU kernel ends before Python has launched the next; a recorded graph takes the launches
out of the way. The kernels are the same ones, so results are too.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)
WARM_UPS = 2  # passes on a side stream before recording: libraries choose kernels and allocate then
MOST = 4  # graphs kept; the oldest one goes. A run has two shapes: full batches and the last one


class Recorded(NamedTuple):
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    signed: Tensor
    result: Tensor


class GraphedForward:
    """Stands in for `OSDFacePipeline.forward` on CUDA.

    Sampled posteriors and prompts from outside run without a graph, and so does everything after a
    recording failed, with one warning.
    """

    def __init__(self, forward: Any) -> None:
        self.plain = forward
        self.recorded: OrderedDict[Any, Recorded] = OrderedDict()
        self.pool: Any = None
        self.failed = False

    def __call__(
        self,
        signed: Tensor,
        prompt: Tensor | None,
        timestep: int,
        a_bar: float,
        posterior: str,
        generator: Any,
    ) -> Tensor:
        """See `OSDFacePipeline.forward`."""
        if self.failed or prompt is not None or posterior != "mode":
            return self.plain(signed, prompt, timestep, a_bar, posterior, generator)
        key = (*signed.shape, timestep)
        if key not in self.recorded:
            try:
                self._record(key, signed, (None, timestep, a_bar, posterior, None))
            except torch.cuda.OutOfMemoryError:
                raise  # the caller goes on with fewer faces
            except RuntimeError as error:
                self.failed = True
                log.warning("no CUDA graph (%s); running without", str(error).splitlines()[0])
                return self.plain(signed, prompt, timestep, a_bar, posterior, generator)
        self.recorded.move_to_end(key)
        graph, static, result = self.recorded[key]
        static.copy_(signed)
        graph.replay()
        return result.clone()  # the next replay overwrites it

    def _record(self, key: Any, signed: Tensor, rest: tuple[Any, ...]) -> None:
        while len(self.recorded) >= MOST:
            self.recorded.popitem(last=False)
        static = signed.clone()
        current, side = torch.cuda.current_stream(signed.device), torch.cuda.Stream(signed.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.plain(static, *rest)
        current.wait_stream(side)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # thread_local: a detector in another thread may allocate while this one records.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = self.plain(static, *rest)
        self.recorded[key] = Recorded(graph, static, result)
