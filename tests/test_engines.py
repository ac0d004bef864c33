"""Engines: same pixels as eager, one clear line where one cannot run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from osdface_core.engines import choose, fast, use_engine
from osdface_core.engines.fast import KeptMemoryForward
from osdface_core.errors import ConfigError
from osdface_core.pipeline import OSDFacePipeline

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_unknown_engines_are_named(tiny_pipeline: OSDFacePipeline) -> None:
    with pytest.raises(ConfigError, match="magic"):
        use_engine(tiny_pipeline, "magic")


def test_graphs_need_cuda(tiny_pipeline: OSDFacePipeline) -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        use_engine(tiny_pipeline, "graphs")


def test_auto_is_fast_where_the_cpu_computes_in_float32(
    tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computes_in(dtype: str, amx: bool) -> tuple[torch.dtype, bool]:
        for module in (choose, fast):
            monkeypatch.setattr(module, "cpu_has_bf16", lambda: amx)
        pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype=dtype)
        return pipeline.dtype, isinstance(pipeline.forward, KeptMemoryForward)

    assert computes_in("fp32", amx=True) == (torch.float32, True)
    assert computes_in("bf16", amx=False) == (torch.float32, True)
    assert computes_in("bf16", amx=True) == (torch.bfloat16, False)


@pytest.mark.parametrize("engine", ["fast", "native"])
def test_engines_of_the_cpu_stay_there(engine: str, tiny_pipeline: OSDFacePipeline) -> None:
    tiny_pipeline = copy.copy(tiny_pipeline)
    tiny_pipeline.device = torch.device("cuda")
    with pytest.raises(ConfigError, match="CPU"):
        use_engine(tiny_pipeline, engine)


@pytest.mark.cuda
@needs_cuda
def test_a_recorded_graph_gives_the_eager_pixels(tiny_checkpoint: Any) -> None:
    eager, graphed = (
        OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cuda", dtype="fp32") for _ in range(2)
    )
    use_engine(graphed, "graphs")
    for count in (1, 3, 1, 2):
        faces = torch.rand(count, 3, 128, 128, generator=torch.Generator().manual_seed(count)).cuda()
        assert (graphed.restore(faces) - eager.restore(faces)).abs().max() < 1e-4
    assert not graphed.forward.failed  # type: ignore[attr-defined]


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("engine", ["eager", "graphs"])
def test_nothing_waits_between_upload_and_download(tiny_checkpoint: Any, engine: str) -> None:
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cuda", dtype="fp16")
    use_engine(pipeline, engine)
    faces = torch.rand(2, 3, 128, 128).cuda()
    pipeline.restore(faces, batch_size=2)  # kernels are chosen, graphs recorded
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as trace:
        torch.cuda.set_sync_debug_mode("error")  # PyTorch raises at the first call that waits for the device
        try:
            pipeline.restore(faces, batch_size=2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    names = {event.key for event in trace.key_averages()}
    waits = {"cudaStreamSynchronize", "aten::item", "aten::_local_scalar_dense"}
    assert not {n for n in names if n in waits or n.startswith("Memcpy DtoH")}
