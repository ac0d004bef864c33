"""Engines: same pixels as eager, one clear line where one cannot run."""

from __future__ import annotations

import copy
import gc
import logging
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from osdface_core import OSDFacePipeline
from osdface_core.config import OSDFaceConfig, UNetConfig
from osdface_core.devices import pick_dtype
from osdface_core.engines import choose, choose_engine
from osdface_core.errors import ConfigError
from osdface_core.models.backbone import Backbone, dtype_of
from osdface_core.models.full import build_full
from osdface_core.models.vre import VRE, Projection, PromptEncoder

CPU = torch.device("cpu")
Wide = Callable[[str, str], OSDFacePipeline]
ROUNDS = 3  # restorations of each thread
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_unknown_engines_are_named(tiny_pipeline: OSDFacePipeline) -> None:
    with pytest.raises(ConfigError, match=r"magic.*auto, eager"):
        choose_engine("magic", CPU)


def test_graphs_need_cuda() -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        choose_engine("graphs", CPU)


def test_without_the_package_auto_is_eager_and_says_what_is_quicker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "osdface_cpu", None)
    with caplog.at_level(logging.INFO, "osdface_core"):
        assert choose_engine("auto", CPU).name == "eager"
    assert [(r.levelname, "pip install ./cpu" in r.message) for r in caplog.records] == [("INFO", True)]
    with pytest.raises(ConfigError, match=r"pip install \./cpu in OSDFace's folder, or use `engine` eager"):
        choose_engine("native", CPU)


def test_with_the_package_auto_is_native() -> None:
    pytest.importorskip("osdface_cpu")
    chosen = choose_engine("auto", CPU)
    assert chosen.name == "native" and chosen.overlaps
    assert choose_engine("auto", torch.device("cuda")).name == "eager"
    with pytest.raises(ConfigError, match="for the CPU"):
        choose_engine("native", torch.device("cuda"))


def test_a_host_s_autocast_does_not_reach_compiled_layers(wide: Wide) -> None:
    pytest.importorskip("osdface_cpu")
    pipeline = wide("fp32", "native")
    faces = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    plain = pipeline.restore(faces)
    assert plain.std() > 0.01
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pipeline.restore(faces), plain)


@pytest.mark.parametrize("quick", [True, False])
def test_native_leaves_bfloat16_to_pytorch_where_that_is_quicker(
    quick: bool, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("osdface_cpu")
    monkeypatch.setattr(choose, "cpu_multiplies_bf16", lambda: quick)
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16", engine="native")
    own = pipeline.backbone
    assert dtype_of(cast(nn.Module, own.codec)) == torch.float32
    pipeline.use_engine("eager")
    assert (own.predictor is pipeline.backbone.predictor) is quick
    assert dtype_of(cast(nn.Module, pipeline.backbone.codec)) == torch.bfloat16


def test_native_keeps_a_live_lora_live() -> None:
    osdface_cpu = pytest.importorskip("osdface_cpu")
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(64, 64), "c": nn.Conv2d(64, 64, 3, padding=1)})
    inject_adapter_in_model(LoraConfig(r=16, target_modules=["a", "c"], init_lora_weights=False), net)
    native = choose_engine("native", CPU)
    near = {torch.float32: 2e-3, torch.bfloat16: 2e-2 if osdface_cpu.halves() else 2e-3}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            net.to(dtype)
            exact = copy.deepcopy(net).float()
            copied = cast(nn.ModuleDict, native.prepare(Backbone(cast(Any, net), cast(Any, None))).codec)
            for name, x in (("a", torch.randn(2, 64)), ("c", torch.randn(1, 64, 40, 40))):
                assert torch.allclose(copied[name](x), exact[name](x), atol=near[dtype])


def test_other_work_goes_beside_a_gpu_and_not_beside_pytorch_on_the_cpu() -> None:
    assert not choose_engine("eager", CPU).overlaps
    assert choose_engine("eager", torch.device("cuda")).overlaps


@pytest.fixture
def wide(tiny_config: OSDFaceConfig) -> Iterator[Wide]:
    """Make a small random pipeline whose layers are wide enough for every engine: (dtype, engine) to it."""
    codec, unet = tiny_config.codec, UNetConfig((64, 64), (False, True), attention_head_dim=8, norm_groups=4)
    config = replace(tiny_config, unet=unet, codec=replace(codec, channels=64))

    def make(dtype: str, engine: str) -> OSDFacePipeline:
        torch.manual_seed(0)
        backbone: Any = build_full(config)
        for weight in backbone.codec.parameters():
            if weight.ndim == 4:  # PyTorch's own initialisation fades: every picture would come out black
                nn.init.kaiming_normal_(weight).mul_(0.8)
        last = backbone.codec.decoder.layers[-1]
        nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(last.bias, 0.5)
        vre, projection = VRE(config.vre), Projection(config.vre.z_channels, config.projection)
        pipeline = OSDFacePipeline(
            config, PromptEncoder(vre, projection), backbone, device=CPU, dtype=pick_dtype(dtype, CPU)
        )
        pipeline.use_engine(engine)
        return pipeline

    with torch.no_grad():
        yield make


class Codec(nn.Module):
    """Two convolutions: what `torch.compile` makes of them is soon made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def encode(self, signed: Tensor, posterior: Any = "mode", generator: Any = None) -> Tensor:
        return self.first(signed)

    def decode(self, latent: Tensor, guide: Tensor | None = None, fidelity: float = 1.0) -> Tensor:
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
    weights = [
        zlib.crc32(t.detach().float().numpy().tobytes()) for m in modules for t in m.parameters(recurse=False)
    ]
    # torch.compile marks PyTorch's own nn.Module, once and for all.
    classes = {c for m in modules for c in type(m).__mro__ if not c.__module__.startswith("torch.")}
    own = {c: {k: id(v) for k, v in vars(c).items()} for c in classes}
    return [[(id(m), type(m)) for m in modules], attributes, inner, own, weights]


def at_once(call: Callable[[int], bool]) -> bool:
    """Whether `call(0)`, …, `call(7)` are all true in eight threads that start together."""
    together = threading.Barrier(8)

    def wait_and_call(number: int) -> bool:
        together.wait()
        return call(number)

    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(wait_and_call, range(8)))


@pytest.fixture(params=["eager", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    """The engines of the CPU that take no minute to start; native where osdface-cpu is installed."""
    if request.param == "native":
        pytest.importorskip("osdface_cpu")
    return request.param


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_engine_leaves_nothing_behind(engine: str, dtype: str, wide: Wide) -> None:
    pipeline = wide(dtype, "eager")
    faces = torch.rand(2, 3, 64, 72)
    own, wanted = pipeline.backbone, pipeline.restore(faces)
    assert 0.05 < wanted.std() < 0.5
    before = described(own)
    pipeline.use_engine(engine)
    assert (pipeline.restore(faces) - wanted).abs().max() < (2 / 255 if dtype == "fp32" else 0.1)
    assert (pipeline.backbone is own) is (engine == "eager")
    pipeline.use_engine("eager")
    assert pipeline.backbone is own
    assert described(own) == before
    assert pipeline.restore(faces).equal(wanted)


def tensors_alive() -> list[Tensor]:
    """Return every tensor that Python holds."""
    gc.collect()
    return [found for found in gc.get_objects() if issubclass(type(found), Tensor)]


def held(tensors: list[Tensor]) -> int:
    """Return the bytes of the memory that they lie in, each counted once; oneDNN's have no address."""
    packed = sum(t.numel() * t.element_size() for t in tensors if t.layout is not torch.strided)
    memory = [t.untyped_storage() for t in tensors if t.layout is torch.strided and t.device.type == "cpu"]
    return packed + sum({m.data_ptr(): m.nbytes() for m in memory}.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("own", [True, False])
def test_native_holds_the_weights_once_and_gives_them_back(
    dtype: str, own: bool, tiny_config: OSDFaceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`own`: whether PyTorch is left to multiply bfloat16."""
    pytest.importorskip("osdface_cpu")
    monkeypatch.setattr(choose, "cpu_multiplies_bf16", lambda: own)
    config = replace(tiny_config, unet=UNetConfig((256, 256), (False, True), 32, 8))  # packs convolutions
    pipeline = OSDFacePipeline(config, None, build_full(config), device=CPU, dtype=pick_dtype(dtype, CPU))
    faces, prompt = torch.rand(1, 3, 64, 64), torch.randn(1, 77, config.projection.out)
    modules = [cast(nn.Module, part) for part in (pipeline.backbone.codec, pipeline.backbone.predictor)]
    kept = {id(p): (p.detach().clone(), p.stride()) for m in modules for p in m.parameters()}
    weights, before = sum(p.nbytes for m in modules for p in m.parameters()), held(tensors_alive())
    pipeline.restore(faces, prompt=prompt)
    pipeline.use_engine("native")
    pipeline.restore(faces, prompt=prompt)
    of_own = {id(x) for m in modules for x in m.modules()}
    parts = (pipeline.backbone.codec, pipeline.backbone.predictor)
    used = [m for part in parts for m in cast(nn.Module, part).modules()]
    copied = [weakref.ref(m) for m in used if id(m) not in of_own]
    del parts, used
    assert copied and held(tensors_alive()) - before <= 0.1 * weights
    pipeline.use_engine("eager")
    assert not [ref for ref in copied if ref() is not None]
    assert held(tensors_alive()) <= before
    for parameter in (p for m in modules for p in m.parameters()):
        old, stride = kept[id(parameter)]
        assert parameter.equal(old) and parameter.stride() == stride


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_engines_change_under_running_threads(engine: str, dtype: str, wide: Wide) -> None:
    """One thread changes, seven restore all the time: it does not wait for ever, and no result is mixed."""
    pipeline, faces = wide(dtype, engine), torch.rand(1, 3, 64, 72)
    wanted = {engine: pipeline.restore(faces)}
    pipeline.use_engine("eager")
    wanted["eager"] = pipeline.restore(faces)
    mine, used, changed, wrong = threading.local(), threading.Condition(), threading.Event(), list[str]()
    encoder = cast(nn.Module, pipeline.prompt_encoder)  # runs within every restoration, in its thread
    encoder.register_forward_pre_hook(lambda *_: setattr(mine, "engine", pipeline.engine.name))
    last = ""

    def restore(number: int) -> None:
        nonlocal last
        restored = pipeline.restore(faces)
        off = {name: float((restored - w).abs().max()) for name, w in wanted.items()}
        if not restored.equal(wanted[mine.engine]):
            wrong.append(f"thread {number} on {mine.engine}; largest difference from serial results: {off}")
        with used:
            last = mine.engine
            used.notify()

    def change() -> bool:
        for name in (engine, "eager") * ROUNDS:
            pipeline.use_engine(name)
            with used:
                assert used.wait_for(lambda name=name: last == name, timeout=300)
        changed.set()
        return True

    def turn(number: int) -> bool:
        if number == 0:
            return change()
        for _ in range(100):
            restore(number)
            if changed.is_set():
                return True
        return False

    assert at_once(turn), "the change of engines waited for ever"
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("cores", [1, 2])
def test_eight_threads_on_one_pipeline(engine: str, dtype: str, cores: int, wide: Wide) -> None:
    pipeline = wide(dtype, engine)
    faces = [torch.rand(1 + i % 2, 3, 64, 72) for i in range(8)]
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
