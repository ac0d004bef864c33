"""The small codec's fidelity branch and its dial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from osdface_core.config import CodecConfig
from osdface_core.errors import OptionError
from osdface_core.models.tiny_codec import TinyCodec, convolve_doubled
from osdface_core.one_step import OneStepRestorer
from osdface_core.pipeline import FacePipeline


@pytest.fixture
def codec() -> TinyCodec:
    torch.manual_seed(0)
    codec = TinyCodec(
        CodecConfig(kind="tiny", channels=8, decoder_blocks=(1, 1, 1, 1), guide_channels=(4, 4, 8, 8))
    )
    assert codec.guide is not None
    for fuse in codec.guide.fuse:
        nn.init.normal_(fuse.weight, std=0.3)
    nn.init.constant_(codec.guide.gate.bias, 0.0)
    return codec.eval()


@torch.inference_mode()
def test_fidelity_turns_the_branch(codec: TinyCodec) -> None:
    latent, guide = torch.randn(2, 4, 4, 4), torch.rand(2, 3, 32, 32) * 2 - 1
    none, half, whole = (codec.decode(latent, guide, fidelity) for fidelity in (0.0, 0.5, 1.0))
    assert none.equal(codec.decode(latent)), "0 is the decoder alone"
    assert whole.equal(codec.decode(latent, guide)), "1 is the default"
    assert not half.equal(none)
    assert not half.equal(whole)


@torch.inference_mode()
def test_fidelity_per_picture(codec: TinyCodec) -> None:
    latent, guide = torch.randn(3, 4, 4, 4), torch.rand(3, 3, 32, 32) * 2 - 1
    mixed = codec.decode(latent, guide, torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1, 1))
    for i, fidelity in enumerate((0.0, 0.3, 1.0)):
        alone = codec.decode(latent[i : i + 1], guide[i : i + 1], fidelity)
        assert torch.allclose(mixed[i : i + 1], alone, atol=1e-5)


@torch.inference_mode()
def test_an_encoder_of_three_stages_starts_on_blocks_of_two_by_two_pixels() -> None:
    small = CodecConfig(kind="tiny", channels=8, encoder_blocks=(2, 1, 1), decoder_blocks=(1, 1, 1, 1))
    codec = TinyCodec(small).eval()
    signed = torch.rand(2, 3, 45, 32) * 2 - 1
    latent = codec.encode(signed)
    assert latent.shape == (2, 4, 5, 4), "an eighth of each side, rounded down"
    blocks = signed[:, :, :40].reshape(2, 3, 20, 2, 16, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 20, 16)
    assert torch.allclose(latent, codec.encoder(blocks))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_four_small_kernels_are_a_large_one_after_doubling(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 6, 3, padding=1, bias=False)
    x = torch.randn(2, 5, 7, 4).to(memory_format=layout).requires_grad_()
    expected = layer(nn.functional.interpolate(x, scale_factor=2.0))
    answer = convolve_doubled(x, layer)
    assert torch.allclose(answer, expected, atol=1e-5)
    weights = torch.randn_like(expected)
    for parameter in (x, layer.weight):
        (wanted,) = torch.autograd.grad(expected, parameter, weights, retain_graph=True)
        (got,) = torch.autograd.grad(answer, parameter, weights, retain_graph=True)
        assert torch.allclose(got, wanted, atol=1e-4)


def test_the_pipeline_has_the_dial(tiny_checkpoint: Path) -> None:
    pipeline = FacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", engine="eager")
    faces = torch.rand(2, 3, 64, 64)
    whole = pipeline.restore(faces)
    assert whole.equal(pipeline.restore(faces, fidelity=1.0))
    with pytest.raises(OptionError, match=r"fidelity.* 0\.2, expected 1: this model has no such dial"):
        pipeline.restore(faces, fidelity=0.2)
    pipeline.config = replace(pipeline.config, codec=replace(pipeline.config.codec, fidelity_dial=True))
    assert not whole.equal(pipeline.restore(faces, fidelity=0.2))
    with pytest.raises(OptionError, match=r"fidelity.* 1\.5, expected 0\.\.1"):
        pipeline.restore(faces, fidelity=1.5)


def test_the_fidelity_branch_follows_what_was_repainted(tiny_checkpoint: Path) -> None:
    pipeline = FacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", engine="eager")
    codec = replace(pipeline.config.codec, fidelity_dial=True)
    pipeline.config = replace(pipeline.config, codec=codec)
    faces = torch.rand(2, 3, 64, 64)
    whole, half, none = (pipeline.restore(faces, fidelity=fidelity) for fidelity in (1.0, 0.5, 0.0))
    assert not half.equal(whole)
    for least, repainted, expected in ((0.5, (0.0, 1e-3), half), (0.5, (99.0, 100.0), whole)):
        codec = replace(codec, least_fidelity=least, repainted=repainted)
        pipeline.one_step = OneStepRestorer(replace(pipeline.config, codec=codec), pipeline.backbone)
        assert torch.allclose(pipeline.restore(faces), expected, atol=1e-6)
        assert pipeline.restore(faces, fidelity=0.0).equal(none)
