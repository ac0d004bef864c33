"""Both released key styles, merged and live, against W + s (alpha / r) B A written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from osdface_core.errors import CheckpointError
from osdface_core.models.lora import (
    attach_lora,
    delta,
    extract_lora,
    lora_config,
    merge_lora,
    parse_lora,
    set_strength,
    to_peft,
)

RANK, ALPHA = 2, 4.0


class Block(nn.Module):
    """A linear layer, a 3x3 convolution and a layer that nobody adapts, under names like a UNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 5)
        self.conv1 = nn.Conv2d(6, 4, 3, padding=1)
        self.plain = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.to_q(x.movedim(1, -1)), self.conv1(x), self.plain(x.movedim(1, -1))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"block": Block()})


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """One layer in each style of the released file."""
    draw = torch.Generator().manual_seed(1)
    return {
        "unet.block.to_q.lora_A.weight": torch.randn(RANK, 6, generator=draw),
        "unet.block.to_q.lora_B.weight": torch.randn(5, RANK, generator=draw),
        "unet.block.conv1.lora.down.weight": torch.randn(RANK, 6, 3, 3, generator=draw),
        "unet.block.conv1.lora.up.weight": torch.randn(4, RANK, 1, 1, generator=draw),
    }


def by_hand(net: nn.Module, tensors: dict[str, torch.Tensor], strength: float) -> nn.Module:
    """The convolution's product as two convolutions in a row, the linear one as a matrix product."""
    net = copy.deepcopy(net)
    block: Any = net.get_submodule("block")
    scale = strength * ALPHA / RANK
    down, up = tensors["unet.block.conv1.lora.down.weight"], tensors["unet.block.conv1.lora.up.weight"]
    product = torch.einsum("orxy,rikl->oikl", up, down)
    with torch.no_grad():
        block.conv1.weight += scale * product
        block.to_q.weight += (
            scale * tensors["unet.block.to_q.lora_B.weight"] @ tensors["unet.block.to_q.lora_A.weight"]
        )
    return net


def outputs(net: nn.Module) -> tuple[torch.Tensor, ...]:
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(2))
    return net.get_submodule("block")(x)


def close(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(outputs(a), outputs(b), strict=True))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, -0.5, 2.0])
def test_merged_and_live_equal_the_formula(net: nn.Module, tensors: dict, strength: float) -> None:
    expected = by_hand(net, tensors, strength)
    merged, live = copy.deepcopy(net), copy.deepcopy(net)
    merge_lora(merged, parse_lora(tensors), ALPHA, strength)
    attach_lora(live, parse_lora(tensors), ALPHA, strength)
    assert close(merged, expected)
    assert close(live, expected)
    assert strength == 0.0 or not close(merged, net)


def test_the_dial_of_a_live_lora(net: nn.Module, tensors: dict) -> None:
    live = copy.deepcopy(net)
    attach_lora(live, parse_lora(tensors), ALPHA)
    for strength in (0.25, 1.0, 0.0):
        set_strength(live, strength)
        assert close(live, by_hand(net, tensors, strength))


def test_strength_0_touches_nothing(net: nn.Module, tensors: dict) -> None:
    before = copy.deepcopy(net.state_dict())
    merge_lora(net, parse_lora(tensors), ALPHA, 0.0)
    assert all(net.state_dict()[k].equal(v) for k, v in before.items())


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.floats(0.1, 32.0), st.integers(1, 6), st.integers(1, 6))
def test_delta(rank: int, alpha: float, outputs: int, inputs: int) -> None:
    draw = torch.Generator().manual_seed(3)
    factors = parse_lora({
        "x.lora_A.weight": torch.randn(rank, inputs, generator=draw),
        "x.lora_B.weight": torch.randn(outputs, rank, generator=draw),
    })["x"]  # fmt: skip
    expected = alpha / rank * factors.up.double() @ factors.down.double()
    assert torch.allclose(
        delta(factors, alpha, torch.Size((outputs, inputs))).double(), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "key",
    [
        "unet.a.b.lora_A.weight",
        "base_model.model.a.b.lora_A.default.weight",
        "a.b.lora.down.weight",
        "a.b.lora_down.weight",
    ],
)
def test_every_spelling_finds_its_layer(key: str) -> None:
    other = key.replace("lora_A", "lora_B").replace("down", "up")
    assert set(parse_lora({key: torch.ones(1, 2), other: torch.ones(2, 1)})) == {"a.b"}


def test_each_style_alone_is_only_half(tensors: dict) -> None:
    assert set(parse_lora(tensors)) == {"block.to_q", "block.conv1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet.block.to_q.alpha": torch.tensor(4.0)}, r"unexpected tensor unet\.block\.to_q\.alpha"),
        ({"unet.other.lora_A.weight": torch.ones(1, 2)}, "other has only its down factor"),
        ({"block.to_q.lora.down.weight": torch.ones(2, 6)}, "block.to_q has two down factors"),
        ({"unet.block.to_q.lora_A.weight": torch.ones(0, 6)}, r"is \(0, 6\), expected 2 to 4 sides"),
        ({"unet.block.to_q.lora_A.weight": torch.ones(12)}, r"is \(12,\), expected 2 to 4 sides"),
        ({"unet.block.to_q.lora_A.weight": torch.ones(2, 6).int()}, "is torch.int32, expected floating"),
    ],
)
def test_unknown_keys_and_missing_halves(tensors: dict, change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_lora(tensors | change)


@pytest.mark.parametrize("apply", [merge_lora, attach_lora])
def test_layers_that_do_not_fit(net: nn.Module, tensors: dict, apply: Any) -> None:
    renamed = {k.replace("to_q", "to_z"): v for k, v in tensors.items()}
    with pytest.raises(CheckpointError, match=r"the base model has no layer block\.to_z"):
        apply(copy.deepcopy(net), parse_lora(renamed), ALPHA)
    wide = tensors | {"unet.block.to_q.lora_A.weight": torch.ones(RANK, 9)}
    with pytest.raises(CheckpointError, match=r"A \(2, 9\) .* the layer \(5, 6\), expected A \(r, 6\)"):
        apply(copy.deepcopy(net), parse_lora(wide), ALPHA)
    turned = {k: v.T if "to_q" in k else v for k, v in tensors.items()}
    with pytest.raises(CheckpointError, match=r"A \(6, 2\) and B \(2, 5\) do not fit.*transposed"):
        apply(copy.deepcopy(net), parse_lora(turned), ALPHA)
    as_linear = tensors | {"unet.block.conv1.lora.down.weight": torch.ones(RANK, 54)}
    with pytest.raises(CheckpointError, match=r"expected A \(r, 6, 3, 3\) and B \(4, r\)"):
        apply(copy.deepcopy(net), parse_lora(as_linear), ALPHA)
    nothing = {k.replace("block.to_q", "block"): v for k, v in tensors.items()}
    with pytest.raises(CheckpointError, match="block has no weight to adapt"):
        apply(copy.deepcopy(net), parse_lora(nothing), ALPHA)


def test_live_adapters_come_out_as_they_went_in(net: nn.Module, tensors: dict) -> None:
    adapters = parse_lora(tensors)
    attach_lora(net, adapters, ALPHA)
    out, expected = extract_lora(net), to_peft(adapters)
    assert set(out) == set(expected)
    assert all(out[k].equal(v) for k, v in expected.items())


def test_what_a_checkpoint_records(tensors: dict) -> None:
    config = lora_config(parse_lora(tensors), ALPHA)
    assert (config.rank, config.alpha, config.targets) == (RANK, ALPHA, ("conv1", "to_q"))
    names = [
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
        "mid.transformer_blocks.0.ff.net.0.proj",
    ]
    pair = parse_lora({f"{n}.lora_{s}.weight": torch.ones(1, 1) for n in names for s in "AB"})
    assert lora_config(pair, 1.0).targets == ("ff.net.0.proj", "to_out.0")
