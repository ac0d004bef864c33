"""Token selection against a slow walk over the definition; the layout of the released encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from osdface_core.config import OSDFaceConfig, ProjectionConfig, VREConfig
from osdface_core.errors import ConfigError
from osdface_core.models.codebook import Codebook, lookup, select_tokens, squared_distances
from osdface_core.models.vre import VRE, Projection, PromptEncoder
from osdface_trainer.vre.autoencoder import Autoencoding
from osdface_trainer.vre.network import VQAutoencoder


def slow_tokens(features: torch.Tensor, codebook: torch.Tensor, count: int) -> list[list[int]]:
    """The definition, one position after the other: positions by distance, the first seen code wins."""
    answer = []
    codes = codebook.double().numpy()
    for image in features.double().flatten(2).numpy():
        nearest = []
        for position in range(image.shape[1]):
            distances = np.square(codes - image[:, position]).sum(1)
            code = int(distances.argmin())
            nearest.append((float(distances[code]), position, code))
        seen: list[int] = []
        for _, _, code in sorted(nearest):
            if code not in seen:
                seen.append(code)
        answer.append((seen + [-1] * count)[:count])
    return answer


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    side=st.integers(1, 6),
    codes=st.integers(1, 40),
    count=st.integers(1, 20),
)
def test_tokens_equal_the_definition(seed: int, batch: int, side: int, codes: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Whole numbers: distances are exact, and ties occur.
    features = torch.randint(-3, 4, (batch, 3, side, side), generator=draw).float()
    codebook = torch.randint(-3, 4, (codes, 3), generator=draw).float()
    tokens, positions = select_tokens(features, codebook, count)
    assert tokens.dtype == positions.dtype == torch.int64
    assert_nearest(features, codebook, tokens, positions)
    assert tokens.tolist() == slow_tokens(features, codebook, count)


def assert_nearest(features: Tensor, codebook: Tensor, tokens: Tensor, positions: Tensor) -> None:
    """A token's position is where its code is named at its smallest distance, the first of equal ones."""
    distance, nearest = squared_distances(features, codebook).min(-1)
    for image, (codes, places) in enumerate(zip(tokens.tolist(), positions.tolist(), strict=True)):
        for code, place in zip(codes, places, strict=True):
            cells = range(distance.shape[1])
            named = [(float(distance[image, p]), p) for p in cells if nearest[image, p] == code]
            assert place == (min(named)[1] if code >= 0 else -1)


def test_at_the_released_size() -> None:
    draw = torch.Generator().manual_seed(1)
    features, codebook = torch.randn(1, 512, 12, 12, generator=draw), torch.randn(1024, 512, generator=draw)
    assert select_tokens(features, codebook, 77).codes.tolist() == slow_tokens(features, codebook, 77)


def test_indices_above_256_survive_half_precision() -> None:
    """bfloat16 holds whole numbers up to 256 only: indices must never pass through it."""
    codebook = torch.eye(1024, 16).bfloat16()
    codebook[1000:, :] = torch.arange(24 * 16).reshape(24, 16).bfloat16()
    features = codebook[1001:1024:2].T.reshape(1, 16, 12, 1)
    tokens = select_tokens(features, codebook, 12).codes
    assert sorted(tokens[0].tolist()) == list(range(1001, 1024, 2))


def test_missing_tokens_are_zero_rows() -> None:
    codebook = torch.randn(8, 4) + 3.0
    features = codebook[:2].repeat(8, 1).T.reshape(1, 4, 4, 4)
    codes = lookup(select_tokens(features, codebook, 5).codes, codebook)
    assert codes.shape == (1, 5, 4)
    assert sorted(map(tuple, codes[0, :2].tolist())) == sorted(map(tuple, codebook[:2].tolist()))
    assert not codes[0, 2:].any()
    assert not lookup(torch.tensor([[-1]]), codebook).any()


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="3 channels, the codebook has 4"):
        select_tokens(torch.zeros(1, 3, 2, 2), torch.zeros(5, 4), 1)


def test_the_released_layout() -> None:
    with torch.device("meta"):
        vre = VRE(VREConfig())
    assert len(vre.state_dict()) == 173
    convolutions = sum(m.weight.numel() + m.bias.numel() for m in vre.modules() if isinstance(m, nn.Conv2d))
    assert convolutions == pytest.approx(28.628e6, rel=5e-5)
    assert vre.quantize.embedding.weight.shape == (1024, 512)
    assert "encoder.down.5.attn.1.norm2.weight" in vre.state_dict()


def test_the_released_input_range() -> None:
    vre = VRE(
        VREConfig(resolution=64, base_channels=8, channel_multipliers=(1,), z_channels=8, norm_groups=4)
    )
    prepared = vre.prepare(torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64).expand(1, 3, 64, 64))
    assert (prepared.min().item(), prepared.max().item()) == (-3.0, 1.0)


def test_other_sizes_are_squashed(tiny_config: OSDFaceConfig) -> None:
    vre = VRE(tiny_config.vre).eval()
    wide = torch.rand(1, 3, 40, 96) * 2 - 1
    squashed = nn.functional.interpolate(wide, (64, 64), mode="bilinear", align_corners=False)
    assert vre.tokens(wide).codes.equal(vre.tokens(squashed).codes)


def test_autocast_does_not_reach_the_encoder(tiny_config: OSDFaceConfig) -> None:
    torch.manual_seed(0)
    vre = VRE(tiny_config.vre).eval()
    faces = torch.rand(2, 3, 64, 64) * 2 - 1
    plain = vre(faces)
    with torch.autocast("cpu", torch.bfloat16):
        inside = vre(faces)
        assert vre.features(faces).dtype == torch.bfloat16  # the surrounding autocast is really on
    assert inside.dtype == torch.float32
    assert inside.equal(plain)


def test_straight_through() -> None:
    book = Codebook(16, 4)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    quantised = book(features)
    assert torch.allclose(quantised.codes, quantised.raw_codes)
    rows = quantised.raw_codes.permute(0, 2, 3, 1).reshape(-1, 4)
    assert rows.equal(book.embedding.weight[quantised.indices.flatten()])
    quantised.codes.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.ones_like(features))


def test_the_autoencoder_keeps_the_size(tiny_config: OSDFaceConfig) -> None:
    model = VQAutoencoder(tiny_config.vre)
    image, features, codes, indices = Autoencoding(model)(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert image.shape == (2, 3, 64, 64)
    assert features.shape == (2, 16, 16, 16)
    assert codes.shape == features.shape and indices.shape == (2, 256)
    assert set(VRE(tiny_config.vre).state_dict()) < set(model.state_dict())


def test_projection() -> None:
    projection = Projection(12, ProjectionConfig(hidden=5, out=7))
    codes = torch.randn(2, 77, 12)
    first = nn.functional.silu(codes @ projection.conv1.weight[..., 0].T + projection.conv1.bias)
    expected = nn.functional.silu(first @ projection.conv2.weight[..., 0].T + projection.conv2.bias)
    assert torch.allclose(projection(codes), expected, atol=1e-6)


def test_learned_vectors_ignore_the_codes() -> None:
    projection = Projection(12, ProjectionConfig(out=7, learned=77))
    assert projection(torch.randn(3, 77, 12)).equal(projection.vectors.expand(3, -1, -1))


def test_positions_of_the_tokens_reach_the_prompt() -> None:
    config = ProjectionConfig(hidden=8, out=16, positions=4)
    projection = Projection(12, config)
    assert projection.positions is not None
    codes = torch.randn(1, 3, 12)
    plain = projection(codes)
    placed = projection(codes, torch.tensor([[2, 0, -1]]))
    expected = plain[0] + torch.stack([projection.positions[2], projection.positions[0], torch.zeros(16)])
    assert torch.allclose(placed[0], expected)
    with pytest.raises(ConfigError, match="5 positions"):
        Projection(12, ProjectionConfig(hidden=8, out=16, positions=5))


def test_a_prompt_encoder_places_its_tokens(tiny_config: OSDFaceConfig) -> None:
    torch.manual_seed(0)
    config = replace(tiny_config.projection, positions=256)
    encoder = PromptEncoder(VRE(tiny_config.vre), Projection(tiny_config.vre.z_channels, config)).eval()
    faces = torch.rand(2, 3, 64, 64) * 2 - 1
    tokens = encoder.vre.tokens(faces)
    assert int(tokens.positions.max()) < config.positions
    assert encoder(faces).equal(encoder.projection(encoder.vre(faces), tokens.positions))
    assert not encoder(faces).equal(encoder.projection(encoder.vre(faces)))
