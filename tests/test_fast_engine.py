"""The engines `fast` and `native`: stand-ins give what layers gave, and step aside otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from osdface_core.engines import choose, compiled, fast, fused, stored, winograd
from osdface_core.engines.arena import kept_memory
from osdface_core.engines.fast import speed_up
from osdface_core.engines.layers import Layers
from osdface_core.engines.native import NativeConv, NativeLayers
from osdface_core.engines.packed import WORTHWHILE, PackedConv
from osdface_core.engines.winograd import Before, WinogradConv, Workspace
from osdface_core.errors import ConfigError
from osdface_core.pipeline import OSDFacePipeline

CLOSE = {"atol": 2e-4, "rtol": 0.0}


def needs_compiler() -> None:
    """Skip where the engine `native` cannot be compiled."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")


@pytest.fixture(params=["fast", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        needs_compiler()
    return request.param


@pytest.fixture
def layers(engine: str) -> Layers:
    return NativeLayers() if engine == "native" else Layers()


@pytest.fixture(autouse=True)
def no_gradient() -> Any:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def picture(channels: int, height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, channels, height, width).to(memory_format=torch.channels_last)


def conv(channels: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 3, padding=1).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("channels", "outputs", "height", "width"),
    [(64, 64, 32, 32), (96, 64, 64, 24), (64, 128, 36, 200), (288, 64, 84, 88), (72, 80, 32, 32)],
)
def test_winograd_is_the_convolution(
    channels: int, outputs: int, height: int, width: int, threads: int, layers: Layers
) -> None:
    layer, x = conv(channels, outputs), picture(channels, height, width, 2)
    exact = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)  # type: ignore[union-attr]
    torch.set_num_threads(threads)
    try:
        got = layers.winograd(PackedConv(layer))(x)
    finally:
        torch.set_num_threads(1)
    assert torch.allclose(got.double(), exact, **CLOSE)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_stripes_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = PackedConv(conv(64, 64)), picture(64, 64, 32)
    whole = WinogradConv(layer, Workspace())(x)
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", 8)  # one row of blocks per stripe
    assert torch.allclose(WinogradConv(layer, Workspace())(x), whole, atol=1e-5)


def test_what_goes_before_and_after(layers: Layers) -> None:
    layer, x = conv(64, 64), picture(64, 32, 32, 2)
    scale, shift, bias = torch.rand(2, 64), torch.rand(2, 64), torch.rand(2, 64)
    residual = picture(64, 32, 32, 2)
    got = layers.winograd(PackedConv(layer))(x, Before(scale, shift, silu=True), bias, residual, relu=True)
    inside = nn.functional.silu(x * scale[..., None, None] + shift[..., None, None])
    expected = nn.functional.conv2d(inside, layer.weight, padding=1) + bias[..., None, None] + residual
    assert torch.allclose(got, expected.relu(), **CLOSE)


def test_group_norm_as_scale_and_shift(layers: Layers) -> None:
    norm = nn.GroupNorm(8, 64)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    x = picture(64, 70, 66, 2) * 3 + 20  # a mean far from zero costs the one-pass variance digits
    before = fused.normalising(x, norm, layers.winograd(PackedConv(conv(64, 64))))
    assert before.scale is not None and before.shift is not None
    got = x * before.scale[..., None, None] + before.shift[..., None, None]
    assert torch.allclose(got, norm(x), atol=2e-4)


@pytest.mark.parametrize("temb", [None, 32])
@pytest.mark.parametrize(("channels", "outputs"), [(64, 64), (64, 128)])
def test_a_residual_block(temb: int | None, channels: int, outputs: int, layers: Layers) -> None:
    block = ResnetBlock2D(in_channels=channels, out_channels=outputs, temb_channels=temb).eval()
    embedding = None if temb is None else torch.randn(2, temb)
    x = picture(channels, 32, 32, 2)
    expected = block(x, embedding)
    assert fused.FusedResnet.suits(block)
    stand_in = fused.FusedResnet(block, layers)
    assert torch.allclose(stand_in(x, embedding), expected, **CLOSE)
    assert stand_in.conv1._kernel is not None
    assert torch.allclose(stand_in(x, embedding), expected, **CLOSE)  # its input is not overwritten
    small = picture(channels, 10, 14)
    assert torch.allclose(
        stand_in(small, embedding if embedding is None else embedding[:1]).mean(),
        block(small, embedding if embedding is None else embedding[:1]).mean(),
    )


def test_a_residual_block_in_its_inputs_memory(layers: Layers) -> None:
    block = ResnetBlock2D(in_channels=64, temb_channels=None).eval()
    x = picture(64, 36, 40)
    expected = block(x, None)
    got = fused.FusedResnet(block, layers, last_use=True)(x)
    assert torch.allclose(got, expected, **CLOSE)
    assert got.data_ptr() == x.data_ptr()


def test_only_chains_of_blocks_give_up_their_inputs(layers: Layers) -> None:
    autoencoder = AutoencoderKL(
        block_out_channels=(64,), norm_num_groups=8, layers_per_block=1, latent_channels=4
    )
    other = nn.Sequential(ResnetBlock2D(in_channels=64, temb_channels=None))
    for module, expected in ((autoencoder, True), (other, False)):
        speed_up(module, torch.float32, layers)
        blocks = [m for m in module.modules() if isinstance(m, fused.FusedResnet)]
        assert blocks and {b.last_use for b in blocks} == {expected}


def test_an_upsampling_block_and_its_forced_size(layers: Layers) -> None:
    block = Upsample2D(64, use_conv=True, out_channels=64)
    x = picture(64, 16, 20)
    expected, forced = block(x), block(x, (31, 39))
    stand_in = fused.FusedUpsample(block, layers)
    assert torch.allclose(stand_in(x), expected, **CLOSE)
    assert torch.allclose(stand_in(x, (31, 39)), forced, **CLOSE)


def test_a_tiny_block(layers: Layers) -> None:
    block = AutoencoderTinyBlock(64, 64, "relu")
    x = picture(64, 32, 32)
    expected = block(x)
    assert torch.allclose(fused.FusedTinyBlock(block, layers)(x), expected, **CLOSE)


def test_blocks_of_another_kind_are_left_alone() -> None:
    assert not fused.FusedResnet.suits(ResnetBlock2D(in_channels=64, temb_channels=None, down=True))
    assert not fused.FusedResnet.suits(
        ResnetBlock2D(in_channels=64, temb_channels=8, time_embedding_norm="scale_shift")
    )
    assert not fused.FusedResnet.suits(ResnetBlock2D(in_channels=32, temb_channels=None))
    assert not fused.FusedUpsample.suits(Upsample2D(64, use_conv=False))
    assert not WinogradConv.suits(nn.Conv2d(64, 64, 3, stride=2, padding=1))
    assert not WinogradConv(PackedConv(conv(64, 64)), Workspace()).fits(30, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_packed_weights_give_the_same(dtype: torch.dtype, stride: int) -> None:
    layer = nn.Conv2d(192, 192, 3, stride=stride, padding=1).to(
        dtype=dtype, memory_format=torch.channels_last
    )
    assert layer.weight.numel() > WORTHWHILE
    x, kept = picture(192, 12, 8).to(dtype), layer.weight.clone()
    expected = layer(x)
    packed = PackedConv(layer)
    assert torch.allclose(packed(x), expected, atol=1e-5 if dtype == torch.float32 else 1e-2)
    assert packed(picture(192, 6, 6).to(dtype)).shape[0] == 1  # another size with the same packed weights
    assert packed.weight().equal(kept)


def test_the_pipelines_pixels_stay(tiny_checkpoint: Any, tiny_pipeline: OSDFacePipeline, engine: str) -> None:
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", engine=engine)
    faces = torch.rand(2, 3, 128, 136)
    assert (pipeline.restore(faces) - tiny_pipeline.restore(faces)).abs().max() < 2 / 255
    assert pipeline.tokens(faces).equal(tiny_pipeline.tokens(faces))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_compute_in_float32(
    tiny_checkpoint: Any, dtype: torch.dtype, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(stored, "WORTHWHILE", 1)  # the small model's layers count as large
    monkeypatch.setattr(Layers, "worthwhile", 1)
    monkeypatch.setattr(choose, "halves", lambda: False)
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype=dtype, engine=engine)
    rounded = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype=dtype, engine="eager")
    for part in (rounded.backbone.codec, rounded.backbone.predictor):
        part.float()  # type: ignore[attr-defined]
    rounded.dtype = torch.float32
    faces = torch.rand(2, 3, 128, 136)
    assert (pipeline.restore(faces) - rounded.restore(faces)).abs().max() < 1e-3
    assert pipeline.tokens(faces).equal(rounded.tokens(faces))
    held = [b for b in _modules(pipeline).buffers() if b.ndim > 1]
    assert held and {b.dtype for b in held} == {dtype}
    assert {p.dtype for p in _modules(pipeline).parameters()} == {torch.float32}
    assert not [m for m in _modules(pipeline).modules() if getattr(m, "_kernel", None) is not None]


@pytest.mark.parametrize("bias", [True, False])
def test_large_half_precision_weights_in_parts(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "LARGE", 1)
    monkeypatch.setattr(stored, "PART", 1 << 10)
    linear = nn.Linear(64, 72, bias=bias).bfloat16()
    layer = nn.Conv2d(32, 40, 3, stride=2, padding=1, bias=bias).bfloat16()
    x, image = torch.randn(2, 5, 64), picture(32, 12, 10)
    expected = linear.float()(x), layer.float()(image)
    parts = list(stored.in_float32(layer.weight, layer.bias))
    assert [len(weight) for weight, _ in parts] == [16, 16, 8]
    got = nn.Sequential(linear.bfloat16(), layer.bfloat16())
    monkeypatch.setattr(Layers, "worthwhile", 1)
    speed_up(got, torch.bfloat16, Layers())
    assert torch.allclose(got[0](x), expected[0], **CLOSE)
    assert torch.allclose(got[1](image), expected[1], **CLOSE)


def test_the_cpus_own_half_precision_is_used_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, layers: Layers
) -> None:
    monkeypatch.setattr(fast, "cpu_has_bf16", lambda: True)
    layer = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1)).bfloat16()
    assert speed_up(layer, torch.bfloat16, layers) == torch.bfloat16
    assert type(layer[0]) is PackedConv
    assert layer(picture(512, 4, 4).bfloat16()).dtype == torch.bfloat16


def test_every_block_of_a_network_is_replaced_once(layers: Layers) -> None:
    network = nn.ModuleDict(
        {
            "a": ResnetBlock2D(in_channels=64, temb_channels=None),
            "b": nn.Sequential(AutoencoderTinyBlock(64, 64, "relu")),
        }
    )
    x = picture(64, 32, 32)
    expected = network["b"](network["a"](x, None))
    speed_up(network, torch.float32, layers)
    assert isinstance(network["a"], fused.FusedResnet)
    assert torch.allclose(network["b"](network["a"](x, None)), expected, atol=1e-3)


def test_native_takes_the_layers_it_can() -> None:
    needs_compiler()
    kinds = [type(NativeLayers().winograd(PackedConv(conv(c, 64)))) for c in (64, 72)]
    assert kinds == [NativeConv, WinogradConv]


def test_native_transforms_half_precision_weights_where_it_pays() -> None:
    needs_compiler()
    small, large = (64, 64), (64, 60)
    wide = NativeConv(Layers().conv(conv(256, 256).bfloat16()), Workspace())
    assert wide.fits(*small) and not wide.fits(*large)
    kept = NativeConv(Layers().conv(conv(256, 256)), Workspace())
    assert kept.fits(*large)


def test_silu_far_from_zero() -> None:
    needs_compiler()
    layer, x = nn.Conv2d(64, 64, 3, padding=1, bias=False), picture(64, 32, 32)
    x[0, :6, 5, 5] = torch.tensor([-1e4, 1e4, -88.5, 88.5, -103.0, 0.0])
    got = NativeConv(PackedConv(layer), Workspace())(
        x, Before(torch.ones(1, 64), torch.zeros(1, 64), silu=True)
    )
    inside = nn.functional.silu(x.double())
    assert torch.allclose(
        got.double(), nn.functional.conv2d(inside, layer.weight.double(), padding=1), atol=0.2
    )


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As on a machine where nothing has been compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.library.cache_clear()
    yield tmp_path
    compiled.library.cache_clear()


def test_compiled_once(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    needs_compiler()
    compiled.library()
    compiled.library.cache_clear()
    compiled.library()
    assert len(caplog.messages) == len(list(fresh.rglob("*.so"))) == 1


def test_no_compiler_is_one_line(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="install one, or use --engine fast"):
        compiled.library()
    assert not list(fresh.rglob("*.so"))


def test_a_compiler_that_fails_is_one_line(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_compiler()
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / compiled.MAIN).write_text("int f() { return nothing; }")
    monkeypatch.setattr(compiled, "SOURCES", wrong)
    with pytest.raises(ConfigError, match="nothing") as caught:
        compiled.library()
    assert "\n" not in str(caught.value)
    assert not list(fresh.rglob("*.so"))


def test_kept_memory_nests_and_ends() -> None:
    from osdface_core.engines import arena

    with kept_memory(), kept_memory():
        assert arena._depth in (0, 2)  # 0 where there is no glibc
    assert arena._depth == 0


def _modules(pipeline: OSDFacePipeline) -> nn.Module:
    return nn.ModuleList([pipeline.backbone.codec, pipeline.backbone.predictor])  # type: ignore[list-item]
