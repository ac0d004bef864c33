"""CUDA graphs: the kernels of a batch recorded once per shape and launched together.

At batch 1 a small GPU kernel ends before Python has launched the next; a recorded graph takes the launches
out of the way. The kernels are the same ones, so results are too.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.backbone import Backbone
from .engine import wrapped

log = logging.getLogger(__name__)
WARM_UPS = 2  # passes on a side stream before recording: libraries choose kernels and allocate then
MOST = 4  # graphs kept per function; the oldest one goes. A run has two shapes: full batches and the last one


def prepare(backbone: Backbone) -> Backbone:
    """Return `backbone` on CUDA graphs, which share one pool of memory."""
    pool = Pool()
    return wrapped(backbone, lambda plain: Graphed(plain, pool))


class Pool:
    """Memory that some graphs share: one of them runs at a time, whichever thread and stream asks."""

    def __init__(self) -> None:
        self.handle: Any = torch.cuda.graph_pool_handle()
        self.lock = threading.Lock()
        self.free = torch.cuda.Event()  # when the last replay's result has been copied out


class Recorded(NamedTuple):
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    arguments: tuple[Any, ...]
    result: Tensor


class Graphed:
    """A function of tensors and numbers to a tensor, replayed from a graph per shape.

    It runs without one after a recording failed, with one warning.
    """

    def __init__(self, plain: Callable[..., Tensor], pool: Pool) -> None:
        self.plain, self.pool = plain, pool
        self.recorded: OrderedDict[Any, Recorded] = OrderedDict()
        self.failed = False

    def __call__(self, *arguments: Any) -> Tensor:
        """Call `plain`, by its graph where there is one."""
        if self.failed:
            return self.plain(*arguments)
        with self.pool.lock:
            try:
                recorded = self._of_shape(arguments)
            except torch.cuda.OutOfMemoryError:
                raise  # the caller goes on with fewer faces
            except RuntimeError as error:
                self.failed = True
                log.warning("no CUDA graph (%s); running without", str(error).splitlines()[0])
                return self.plain(*arguments)
            return self._replay(recorded, arguments)

    def _of_shape(self, arguments: tuple[Any, ...]) -> Recorded:
        key = tuple((a.shape, a.dtype) if isinstance(a, Tensor) else a for a in arguments)
        if key not in self.recorded:
            while len(self.recorded) >= MOST:
                self.recorded.popitem(last=False)
            self.recorded[key] = self._record(arguments)
        self.recorded.move_to_end(key)
        return self.recorded[key]

    def _record(self, arguments: tuple[Any, ...]) -> Recorded:
        static = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.plain(*static)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: a detector in another thread may allocate while this one records.
        with torch.cuda.graph(graph, pool=self.pool.handle, capture_error_mode="thread_local"):
            result = self.plain(*static)
        return Recorded(graph, static, result)

    def _replay(self, recorded: Recorded, arguments: tuple[Any, ...]) -> Tensor:
        self.pool.free.wait()
        for static, given in zip(recorded.arguments, arguments, strict=True):
            if isinstance(static, Tensor):
                static.copy_(given)
        recorded.graph.replay()
        result = recorded.result.clone()  # the next replay overwrites it
        self.pool.free.record()
        return result
