"""Engines: same pixels as eager, one clear line where one cannot run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from osdface_core.engines import choose_engine
from osdface_core.errors import ConfigError
from osdface_core.models.backbone import Backbone
from osdface_core.pipeline import OSDFacePipeline

CPU = torch.device("cpu")
CPU_ENGINES = ("eager",)
ROUNDS = 4  # restorations of each thread
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_unknown_engines_are_named(tiny_pipeline: OSDFacePipeline) -> None:
    with pytest.raises(ConfigError, match=r"magic.*auto, eager"):
        choose_engine("magic", CPU)


def test_graphs_need_cuda() -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        choose_engine("graphs", CPU)


def test_other_work_goes_beside_a_gpu_and_not_beside_pytorch_on_the_cpu() -> None:
    assert not choose_engine("eager", CPU).overlaps
    assert choose_engine("eager", torch.device("cuda")).overlaps


class Codec(nn.Module):
    """Two convolutions: what `torch.compile` makes of them is soon made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def encode(self, signed: Tensor, posterior: Any = "mode", generator: Any = None) -> Tensor:
        return self.first(signed)

    def decode(self, latent: Tensor, guide: Tensor | None = None) -> Tensor:
        return self.last(latent)


class Predictor(nn.Module):
    """A convolution and the mean of the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, latent: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        return self.conv(latent) + prompt.mean() * timestep


def run(backbone: Backbone, faces: Tensor) -> Tensor:
    """(B, 3, H, W) through all of a backbone."""
    with torch.inference_mode():
        latent = backbone.codec.encode(faces)
        return backbone.codec.decode(backbone.predictor(latent, 3, faces), faces)


def described(backbone: Backbone) -> list[Any]:
    """Every module of a backbone with its class, attributes and weights, and what its classes hold."""
    parts = (backbone.codec, backbone.predictor)
    modules = [module for part in parts for module in cast(nn.Module, part).modules()]
    attributes = [{k: id(v) for k, v in vars(m).items()} for m in modules]
    inner = [{k: id(v) for k, v in (*m._parameters.items(), *m._modules.items())} for m in modules]
    weights = [t.clone() for m in modules for t in m.parameters(recurse=False)]
    # torch.compile marks PyTorch's own nn.Module, once and for all.
    classes = {c for m in modules for c in type(m).__mro__ if not c.__module__.startswith("torch.")}
    own = {c: {k: id(v) for k, v in vars(c).items()} for c in classes}
    return [[(id(m), type(m)) for m in modules], attributes, inner, own, [w.tolist() for w in weights]]


def at_once(call: Callable[[int], bool]) -> bool:
    """Whether `call(0)`, …, `call(7)` are all true in eight threads that start together."""
    together = threading.Barrier(8)

    def wait_and_call(number: int) -> bool:
        together.wait()
        return call(number)

    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(wait_and_call, range(8)))


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_an_engine_leaves_nothing_behind(engine: str, tiny_checkpoint: Any) -> None:
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", engine="eager")
    faces = torch.rand(2, 3, 128, 136)
    own, wanted = pipeline.backbone, pipeline.restore(faces)
    before = described(own)
    pipeline.use_engine(engine)
    assert (pipeline.restore(faces) - wanted).abs().max() < 2 / 255
    pipeline.use_engine("eager")
    assert pipeline.backbone is own
    assert described(own) == before
    assert pipeline.restore(faces).equal(wanted)


@pytest.mark.parametrize("engine", CPU_ENGINES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cores", [1, 2])
def test_eight_threads_on_one_pipeline(engine: str, dtype: str, cores: int, tiny_checkpoint: Any) -> None:
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype=dtype, engine=engine)
    faces = [torch.rand(1 + i % 2, 3, 128, 136) for i in range(8)]
    torch.set_num_threads(cores)
    try:
        wanted = [pipeline.restore(f) for f in faces]
        assert at_once(lambda i: all(pipeline.restore(faces[i]).equal(wanted[i]) for _ in range(ROUNDS)))
    finally:
        torch.set_num_threads(1)


def test_a_compiled_backbone() -> None:
    own, faces = Backbone(Codec(), Predictor()), [torch.rand(1, 3, 16, 16) for _ in range(8)]
    wanted, before = run(own, faces[0]), described(own)
    compiled = choose_engine("compile", CPU).prepare(own)
    assert torch.allclose(run(compiled, faces[0]), wanted, atol=1e-5)
    assert described(own) == before and run(own, faces[0]).equal(wanted)
    serial = [run(compiled, f) for f in faces]
    assert at_once(lambda i: all(run(compiled, faces[i]).equal(serial[i]) for _ in range(ROUNDS)))


@pytest.mark.cuda
@needs_cuda
def test_a_recorded_graph_gives_the_eager_pixels(tiny_checkpoint: Any) -> None:
    eager, graphed = (
        OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cuda", dtype="fp32") for _ in range(2)
    )
    graphed.use_engine("graphs")
    for count in (1, 3, 1, 2):
        faces = torch.rand(count, 3, 128, 128, generator=torch.Generator().manual_seed(count)).cuda()
        assert (graphed.restore(faces) - eager.restore(faces)).abs().max() < 1e-4
    assert not graphed.backbone.predictor.failed  # type: ignore[attr-defined]


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("engine", ["eager", "graphs"])
def test_nothing_waits_between_upload_and_download(tiny_checkpoint: Any, engine: str) -> None:
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cuda", dtype="fp16")
    pipeline.use_engine(engine)
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
