"""Half precision: near the exact layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from osdface_cpu import give_back, halves, prepare
from osdface_cpu.attention import HalfAttention, attend
from osdface_cpu.blocks import FusedResnet
from osdface_cpu.convolution import Before
from osdface_cpu.half import HalfConv, HalfLayers, HalfLinear, HalfWinograd, in_range, pack, unpack
from osdface_cpu.layers import HalfStoredLinear
from osdface_cpu.library import Workspace
from osdface_cpu.packed import PackedConv
from torch import Tensor, nn

NEAR = 2e-3  # of the output's spread, root mean square
WINOGRAD = 6e-3  # the same where the transforms enlarge the rounding (white noise, the worst case)


pytestmark = pytest.mark.skipif(not halves(), reason="this CPU has no AVX512-FP16")


def off(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).square().mean().sqrt() / exact.double().std())


def picture(channels: int, height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, channels, height, width).to(memory_format=torch.channels_last)


def test_packing_is_undone() -> None:
    weight = torch.randn(64, 96, 3, 3).half()
    assert unpack(pack(weight)).equal(weight.flatten(2))


@pytest.mark.parametrize("rows", [(1,), (2, 77), (3000,)])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 64), (320, 96), (4640, 32)])
def test_a_linear_layer(rows: tuple[int, ...], inputs: int, outputs: int, threads: int) -> None:
    layer, x = nn.Linear(inputs, outputs).bfloat16(), torch.randn(*rows, inputs)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    got = HalfLinear(layer, Workspace())(x)
    assert got.shape == exact.shape and off(got, exact) < NEAR


@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 0), (3, 2, 1), (1, 2, 0)]
)
def test_a_convolution(side: int, stride: int, padding: int) -> None:
    layer = nn.Conv2d(96, 64, side, stride, padding, bias=side == 1).half()
    x = picture(96, 21, 34, 2)
    exact = nn.functional.conv2d(x, layer.weight.float(), None, stride, padding)
    if layer.bias is not None:
        exact += layer.bias.float().view(-1, 1, 1)
    got = HalfConv(layer, Workspace())(x)
    assert off(got, exact) < NEAR and got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("inputs", "outputs", "height", "width"), [(64, 96, 64, 64), (160, 64, 64, 100), (64, 64, 68, 200)]
)
def test_winograd(inputs: int, outputs: int, height: int, width: int, threads: int) -> None:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1).bfloat16()
    x, residual = picture(inputs, height, width, 2), picture(outputs, height, width, 2)
    scale, shift = torch.rand(2, inputs), torch.rand(2, inputs)
    inside = nn.functional.silu(x * scale[..., None, None] + shift[..., None, None])
    exact = nn.functional.conv2d(inside, layer.weight.float(), layer.bias.float(), padding=1) + residual  # type: ignore[union-attr]
    conv = HalfLayers().conv(layer)
    assert isinstance(conv, HalfWinograd) and conv.fits(height, width) and not conv.fits(32, 32)
    got = conv(x, Before(scale, shift, silu=True), residual=residual)
    assert off(got, exact) < WINOGRAD


def test_winograd_on_an_enlarged_picture() -> None:
    layer, x = nn.Conv2d(64, 64, 3, padding=1).half(), picture(64, 40, 36)
    large = nn.functional.interpolate(x, scale_factor=2.0)
    exact = nn.functional.conv2d(large, layer.weight.float(), layer.bias.float(), padding=1)  # type: ignore[union-attr]
    assert off(HalfLayers().conv(layer)(x, Before(double=True)), exact) < WINOGRAD


def test_large_activations_stay_finite() -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1).half()
    x = picture(64, 64, 64) * 3e4  # above float16's range in places
    exact = nn.functional.conv2d(x, layer.weight.float(), layer.bias.float(), padding=1)  # type: ignore[union-attr]
    conv = HalfLayers().conv(layer)
    assert off(conv.direct(x), exact) < NEAR and off(conv(x), exact) < WINOGRAD


def test_a_residual_block_large_and_small() -> None:
    block = ResnetBlock2D(in_channels=64, out_channels=96, temb_channels=32).eval().bfloat16()
    exact = ResnetBlock2D(in_channels=64, out_channels=96, temb_channels=32).eval()
    exact.load_state_dict(block.state_dict())
    embedding, fused = torch.randn(1, 32), prepare(block)
    assert isinstance(fused, FusedResnet) and isinstance(fused.block.conv1, HalfWinograd)
    for side in (64, 20):
        x = picture(64, side, side)
        assert off(fused(x, embedding), exact(x, embedding)) < WINOGRAD


@pytest.mark.parametrize(
    ("heads", "queries", "keys", "width"),
    [(5, 300, 300, 64), (2, 64, 77, 32), (1, 33, 40, 512), (3, 1, 1, 32)],
)
def test_attention(heads: int, queries: int, keys: int, width: int, threads: int) -> None:
    def split(rows: Tensor) -> Tensor:
        return rows.double().unflatten(2, (heads, width)).transpose(1, 2)

    q, k, v = (torch.randn(2, n, heads * width) for n in (queries, keys, keys))
    q[0, 0] *= 4000  # its scores pass float16's range before they are divided by sqrt D
    exact = (
        nn.functional.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)
    )
    got = attend(q, k, v, heads, Workspace())
    assert got.isfinite().all() and off(got[1], exact[1]) < 4e-3


@pytest.mark.parametrize(
    "options", [{"cross_attention_dim": 96}, {"norm_num_groups": 8, "residual_connection": True}]
)
def test_diffusers_attention(options: dict[str, Any]) -> None:
    module = Attention(64, heads=2, dim_head=32, bias=True, rescale_output_factor=2.0, **options).eval()
    prompt = torch.randn(2, 77, 96) if "cross_attention_dim" in options else None
    x = torch.randn(2, 80, 64) if prompt is not None else picture(64, 8, 10, 2)
    exact, mask = module(x, prompt), torch.zeros(2, 1, 77)
    masked = None if prompt is None else module(x, prompt, attention_mask=mask)
    plain = module.processor
    HalfLayers().attention(module)
    assert isinstance(module.processor, HalfAttention) and module.processor.plain is plain
    assert off(module(x, prompt), exact) < 4e-3
    if masked is not None:
        assert module(x, prompt, attention_mask=mask).equal(masked)  # as diffusers does it


def test_other_attention_stays_as_it_is() -> None:
    module = Attention(48, heads=2, dim_head=24)
    HalfLayers().attention(module)
    assert not isinstance(module.processor, HalfAttention)


def test_a_copy_gives_bfloat16_weights_back_although_float16_cannot_hold_them_all() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(64, 64, 3, padding=1)).bfloat16()
    network.to(memory_format=torch.channels_last)
    network[0].weight[3, :5] = network[1].weight[2, 4, :, 1] = torch.tensor(1.2345e-6)
    kept = [(id(p), p.stride(), p.clone()) for p in network.parameters()]
    copied = prepare(network)
    assert isinstance(copied[0], HalfLinear) and isinstance(copied[1], HalfWinograd)
    copied[1](copied[0](torch.randn(1, 64, 64, 64)))
    assert [len(p) for p in network.parameters()] == [0, 64, 0, 64]
    give_back(copied)
    for parameter, (own, stride, old) in zip(network.parameters(), kept, strict=True):
        assert id(parameter) == own and parameter.stride() == stride and parameter.equal(old)


def test_what_float16_cannot_hold_stays_as_it_is() -> None:
    layers, linear, conv = HalfLayers(), nn.Linear(64, 64).bfloat16(), nn.Conv2d(64, 64, 3).bfloat16()
    odd = nn.Linear(40, 64).bfloat16()
    assert in_range(linear.weight) and not in_range(odd.weight)
    linear.weight[0, 0] = conv.weight[0, 0, 0, 0] = 1e6
    for layer in (linear, odd):
        plain = layers.linear(layer)
        assert (
            isinstance(plain, HalfStoredLinear)
            and plain(torch.ones(layer.in_features)).dtype == torch.float32
        )
    assert type(layers.conv(conv)) is PackedConv
    assert not in_range(linear.weight.float())  # float32 beside half precision stays exact


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(64, 64, 3, dilation=2), nn.Conv2d(64, 64, (1, 3)), nn.Conv2d(64, 64, 3, padding=(0, 1))],
)
def test_other_convolutions_stay_as_they_are(conv: nn.Conv2d) -> None:
    assert type(HalfLayers().conv(conv.bfloat16())) is PackedConv


def test_float32_stays_exact() -> None:
    assert type(prepare(nn.Linear(64, 64))) is nn.Linear
