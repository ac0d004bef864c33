"""Stand-ins give what layers gave, on every instruction set, and step aside otherwise."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from diffusers.models.upsampling import Upsample2D
from osdface_cpu import give_back, library, prepare
from osdface_cpu.blocks import FusedResnet, FusedTinyBlock, FusedUpsample, normalising
from osdface_cpu.convolution import Before, WinogradConv
from osdface_cpu.library import Workspace
from osdface_cpu.packed import WORTHWHILE, PackedConv
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

CLOSE = {"atol": 2e-4, "rtol": 0.0}


def picture(channels: int, height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, channels, height, width).to(memory_format=torch.channels_last)


def conv(channels: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 3, padding=1).to(memory_format=torch.channels_last)


def winograd(layer: nn.Conv2d) -> WinogradConv:
    return WinogradConv(PackedConv(layer), Workspace())


@pytest.mark.usefixtures("each_level")
@pytest.mark.parametrize(
    ("channels", "outputs", "height", "width"),
    [(64, 64, 32, 32), (96, 64, 65, 23), (64, 128, 36, 200), (288, 64, 84, 88), (64, 64, 8, 9)],
)
def test_winograd_is_the_convolution(
    channels: int, outputs: int, height: int, width: int, threads: int
) -> None:
    layer, x = conv(channels, outputs), picture(channels, height, width, 2)
    exact = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)  # type: ignore[union-attr]
    got = winograd(layer)(x)
    assert torch.allclose(got.double(), exact, **CLOSE)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("each_level")
@pytest.mark.parametrize("size", [(64, 64), (36, 33), (210, 190)])
def test_the_number_of_threads_changes_no_bit(size: tuple[int, int]) -> None:
    block, x = prepare(ResnetBlock2D(in_channels=64, out_channels=96, temb_channels=None)), picture(64, *size)
    results = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        results.append(block(x, None))
    torch.set_num_threads(1)
    assert all(result.equal(results[0]) for result in results)


@pytest.mark.usefixtures("each_level")
@pytest.mark.parametrize("cores", [1, 2])
def test_eight_threads_on_one_network(cores: int) -> None:
    blocks = [ResnetBlock2D(in_channels=64, temb_channels=None), Upsample2D(64, use_conv=True)]
    network = prepare(nn.ModuleList([*blocks, AutoencoderTinyBlock(64, 64, "relu"), conv(64, 96)]))
    inputs = [picture(64, 33 + 4 * i, 40) for i in range(8)]
    together = threading.Barrier(8)

    def run(x: Tensor) -> Tensor:
        x = network[0](x, None)
        for module in list(network)[1:]:
            x = module(x)
        return x

    def check(number: int) -> bool:
        with torch.inference_mode():
            together.wait()
            return all(run(inputs[number]).equal(wanted[number]) for _ in range(5))

    torch.set_num_threads(cores)
    try:
        wanted = [run(x) for x in inputs]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(check, range(8)))
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("each_level")
def test_threads_of_its_own_where_pytorch_has_no_openmp() -> None:
    layer, x = winograd(conv(64, 64)), picture(64, 100, 100)
    wanted = layer(x)
    library.library().osdface_use_fork(None)
    torch.set_num_threads(3)
    try:
        assert layer(x).equal(wanted)
    finally:
        torch.set_num_threads(1)
        library.library().osdface_use_fork(library._openmp())


@pytest.mark.usefixtures("each_level")
@pytest.mark.parametrize("size", [(40, 33), (8, 8)])
def test_what_goes_before_and_after(size: tuple[int, int]) -> None:
    layer, x = conv(64, 64), picture(64, *size, 2)
    scale, shift, bias = torch.rand(2, 64), torch.rand(2, 64), torch.rand(2, 64)
    residual = picture(64, *size, 2)
    got = winograd(layer)(x, Before(scale, shift, silu=True), bias, residual, relu=True)
    inside = nn.functional.silu(x * scale[..., None, None] + shift[..., None, None])
    expected = nn.functional.conv2d(inside, layer.weight, padding=1) + bias[..., None, None] + residual
    assert torch.allclose(got, expected.relu(), **CLOSE)


@pytest.mark.usefixtures("each_level")
def test_group_norm_as_scale_and_shift() -> None:
    norm = nn.GroupNorm(8, 64)
    nn.init.uniform_(norm.weight)
    nn.init.normal_(norm.bias)
    x = picture(64, 70, 66, 2) * 3 + 20  # a mean far from zero costs the one-pass variance digits
    before = normalising(x, norm)
    assert before.scale is not None and before.shift is not None
    got = x * before.scale[..., None, None] + before.shift[..., None, None]
    assert torch.allclose(got, norm(x), atol=2e-4)


@pytest.mark.usefixtures("each_level")
def test_silu_far_from_zero() -> None:
    layer, x = nn.Conv2d(64, 64, 3, padding=1, bias=False), picture(64, 32, 32)
    x[0, :6, 5, 5] = torch.tensor([-1e4, 1e4, -88.5, 88.5, -103.0, 0.0])
    got = winograd(layer)(x, Before(torch.ones(1, 64), torch.zeros(1, 64), silu=True))
    inside = nn.functional.silu(x.double())
    exact = nn.functional.conv2d(inside, layer.weight.double(), padding=1)
    assert torch.allclose(got.double(), exact, atol=0.2)


@pytest.mark.parametrize("temb", [None, 32])
@pytest.mark.parametrize(("channels", "outputs"), [(64, 64), (64, 128)])
def test_a_residual_block(temb: int | None, channels: int, outputs: int) -> None:
    block = ResnetBlock2D(in_channels=channels, out_channels=outputs, temb_channels=temb).eval()
    embedding = None if temb is None else torch.randn(2, temb)
    stand_in = prepare(block)
    assert isinstance(stand_in, FusedResnet)
    for size in ((32, 32), (35, 50), (10, 14)):
        x = picture(channels, *size, 2)
        kept, expected = x.clone(), block(x, embedding)
        assert torch.allclose(stand_in(x, embedding), expected, **CLOSE)
        assert x.equal(kept)


def test_a_residual_block_in_its_inputs_memory() -> None:
    block = ResnetBlock2D(in_channels=64, temb_channels=None).eval()
    x = picture(64, 36, 40)
    expected = block(x, None)
    got = FusedResnet(prepare(block).block, last_use=True)(x)
    assert torch.allclose(got, expected, **CLOSE)
    assert got.data_ptr() == x.data_ptr()


def test_only_chains_of_blocks_give_up_their_inputs() -> None:
    autoencoder = AutoencoderKL(
        block_out_channels=(64,), norm_num_groups=8, layers_per_block=1, latent_channels=4
    )
    other = nn.Sequential(ResnetBlock2D(in_channels=64, temb_channels=None))
    for module, expected in ((autoencoder, True), (other, False)):
        blocks = [m for m in prepare(module).modules() if isinstance(m, FusedResnet)]
        assert blocks and {b.last_use for b in blocks} == {expected}


def test_an_upsampling_block_and_its_forced_size() -> None:
    block = Upsample2D(64, use_conv=True, out_channels=64)
    stand_in = prepare(block)
    assert isinstance(stand_in, FusedUpsample)
    for size in ((16, 20), (25, 31), (5, 6)):
        x = picture(64, *size)
        forced = (2 * size[0] - 1, 2 * size[1] - 1)
        assert torch.allclose(stand_in(x), block(x), **CLOSE)
        assert torch.allclose(stand_in(x, forced), block(x, forced), **CLOSE)


def test_a_tiny_block() -> None:
    block = AutoencoderTinyBlock(64, 64, "relu")
    stand_in = prepare(block)
    assert isinstance(stand_in, FusedTinyBlock)
    for size in ((32, 32), (41, 30), (7, 8)):
        x = picture(64, *size)
        assert torch.allclose(stand_in(x), block(x), **CLOSE)


def test_blocks_of_another_kind_are_left_alone() -> None:
    assert not FusedResnet.suits(ResnetBlock2D(in_channels=64, temb_channels=None, down=True))
    assert not FusedResnet.suits(
        ResnetBlock2D(in_channels=64, temb_channels=8, time_embedding_norm="scale_shift")
    )
    assert not FusedResnet.suits(ResnetBlock2D(in_channels=32, temb_channels=None))
    assert not FusedUpsample.suits(Upsample2D(64, use_conv=False))
    for other in (nn.Conv2d(64, 64, 3, stride=2, padding=1), conv(72, 64), nn.Linear(64, 64)):
        assert not WinogradConv.suits(other)


@pytest.mark.parametrize("stride", [1, 2])
def test_packed_weights_give_the_same(stride: int) -> None:
    layer = nn.Conv2d(192, 192, 3, stride=stride, padding=1).to(memory_format=torch.channels_last)
    assert layer.weight.numel() > WORTHWHILE
    packed, exact = PackedConv(layer), copy.deepcopy(layer)
    for size in ((12, 8), (6, 6)):  # another size with the same packed weights
        x = picture(192, *size)
        assert torch.allclose(packed(x), exact(x), atol=1e-5)
    assert packed.weight.plain().equal(exact.weight)


def test_packed_weights_are_held_once_and_given_back() -> None:
    layer, x = conv(192, 192), picture(192, 8, 8)
    kept, own = layer.weight.clone(), layer.weight
    memory = StorageWeakRef(layer.weight.untyped_storage())
    copied = prepare(layer)
    copied(x)
    assert layer.weight is own and own.shape == (0,) and memory.expired()
    with pytest.raises(RuntimeError):
        layer(x)
    with pytest.raises(RuntimeError, match="another copy"):
        prepare(layer)(x)
    give_back(copied)
    assert layer.weight is own and own.equal(kept) and own.stride() == kept.stride()
    with pytest.raises(RuntimeError, match="given back"):
        copied(x)
    assert prepare(layer)(x).equal(prepare_of(kept, layer)(x))


def prepare_of(weight: Tensor, like: nn.Conv2d) -> nn.Module:
    """Prepare a layer of its own with these weights."""
    other = copy.deepcopy(like)
    other.weight = nn.Parameter(weight.clone())
    return prepare(other)


def test_one_thread_packs_while_others_wait() -> None:
    layer, x = conv(192, 192), picture(192, 8, 8)
    wanted, copied = prepare(copy.deepcopy(layer))(x), prepare(layer)
    together = threading.Barrier(8)

    def check(_: int) -> bool:
        with torch.inference_mode():
            together.wait()
            return copied(x).equal(wanted)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(8)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_shared(dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr("osdface_cpu.network.halves", lambda: False)
    network = nn.Sequential(conv(64, 64), nn.Linear(64, 64)).to(dtype)
    copied, x = prepare(network), picture(64, 40, 64)
    first, second = network[0].weight.float(), network[1].weight.float()
    h = copied[0](x)
    assert torch.allclose(h, nn.functional.conv2d(x, first, network[0].bias.float(), padding=1), **CLOSE)
    wanted = nn.functional.linear(h, second, network[1].bias.float())
    assert copied[1](h).equal(wanted) and wanted.dtype == torch.float32
    assert copied[0].direct.weight.plain().data_ptr() == network[0].weight.data_ptr()
    assert copied[1].weight.data_ptr() == network[1].weight.data_ptr() and copied[0]._kernel is None


def test_every_block_of_a_network_is_replaced_once() -> None:
    network = nn.ModuleDict(
        {
            "a": ResnetBlock2D(in_channels=64, temb_channels=None),
            "b": nn.Sequential(AutoencoderTinyBlock(64, 64, "relu")),
        }
    )
    x, copied = picture(64, 32, 32), prepare(network)
    assert isinstance(copied["a"], FusedResnet) and isinstance(copied["b"][0], FusedTinyBlock)
    assert type(network["a"]) is ResnetBlock2D
    expected = network["b"](network["a"](x, None))
    assert torch.allclose(copied["b"](copied["a"](x, None)), expected, atol=1e-3)


def test_a_copy_shares_float32_weights_and_changes_none() -> None:
    network = nn.Sequential(conv(64, 64), nn.GroupNorm(8, 64), nn.Linear(8, 8))
    kept: list[Any] = [(id(p), p.clone()) for p in network.parameters()]
    copied = prepare(network)
    copied(picture(64, 32, 8))
    assert copied[0].direct.conv.weight is network[0].weight and copied[1].weight is network[1].weight
    assert all(id(p) == i and p.equal(old) for p, (i, old) in zip(network.parameters(), kept, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_compute_in_float32(dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr("osdface_cpu.network.halves", lambda: False)
    block = ResnetBlock2D(in_channels=64, temb_channels=None).to(dtype)
    copied, x = prepare(block), picture(64, 40, 40)
    assert {p.dtype for p in block.parameters()} == {dtype}
    assert {p.dtype for p in copied.parameters()} == {torch.float32}
    assert torch.allclose(copied(x, None), block.float()(x, None), **CLOSE)


def test_an_unknown_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "level", lambda: "mmx")
    with pytest.raises(OSError, match="mmx"):
        prepare(nn.Linear(2, 2))
