"""The pipeline on a small random model: what a result may depend on, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from osdface_core import OSDFacePipeline
from osdface_core.errors import ConfigError, ImageError, OptionError, OSDFaceError
from osdface_core.pipeline import FacePipeline


def faces(count: int = 3, size: tuple[int, int] = (128, 128), seed: int = 0) -> Tensor:
    """Smooth pictures with some noise: not all tokens alike."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (smooth * 0.9 + 0.1 * torch.rand(count, 3, *size, generator=draw)).clamp(0, 1)


def test_a_batch_equals_singles_in_any_order(tiny_pipeline: OSDFacePipeline) -> None:
    batch = faces(5)
    together = tiny_pipeline.restore(batch, batch_size=5)
    assert together.shape == batch.shape
    assert (together.min() >= 0) and (together.max() <= 1)
    apart = torch.cat([tiny_pipeline.restore(face[None]) for face in batch])
    assert torch.allclose(together, apart, atol=1e-5)
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = tiny_pipeline.restore(batch[order], batch_size=2)
    assert torch.allclose(shuffled, together[order], atol=1e-5)
    assert tiny_pipeline.tokens(batch).equal(torch.cat([tiny_pipeline.tokens(face[None]) for face in batch]))


def test_no_seed_matters(tiny_pipeline: OSDFacePipeline) -> None:
    batch = faces(1)
    torch.manual_seed(1)
    first = tiny_pipeline.restore(batch)
    torch.manual_seed(2)
    assert tiny_pipeline.restore(batch).equal(first)


def test_strength(tiny_pipeline: OSDFacePipeline) -> None:
    batch = faces(2)
    full = tiny_pipeline.restore(batch)
    assert not torch.allclose(full, batch, atol=0.02)
    assert tiny_pipeline.restore(batch, strength=0.0).equal(batch)
    half = tiny_pipeline.restore(batch, strength=0.5)
    assert torch.allclose(half, (batch + full) / 2, atol=1e-6)


def test_the_prompt_matters_and_can_be_given(tiny_pipeline: OSDFacePipeline) -> None:
    batch = faces(2)
    own = tiny_pipeline.encode_prompt(batch)
    assert own.shape == (2, 77, 32)
    assert own.dtype == torch.float32
    plain = tiny_pipeline.restore(batch)
    assert torch.allclose(tiny_pipeline.restore(batch, prompt=own, batch_size=1), plain, atol=1e-5)
    # Random weights attend weakly; a far prompt shows that it arrives at all.
    assert not tiny_pipeline.restore(batch, prompt=own[:1] * 0 + 50).equal(plain)


def test_the_timestep_matters(tiny_pipeline: OSDFacePipeline) -> None:
    batch = faces(1)
    plain = tiny_pipeline.restore(batch)
    assert tiny_pipeline.restore(batch, timestep=399).equal(plain)
    assert not torch.allclose(tiny_pipeline.restore(batch, timestep=100), plain, atol=1e-4)


@pytest.mark.parametrize("size", [(512, 512), (100, 136), (8, 8), (75, 64)])
def test_sizes_are_cut_to_multiples_of_8(tiny_pipeline: OSDFacePipeline, size: tuple[int, int]) -> None:
    result = tiny_pipeline.restore(faces(1, size), color_fix="adain")
    assert result.shape == (1, 3, size[0] // 8 * 8, size[1] // 8 * 8)


def test_type_is_kept(tiny_pipeline: OSDFacePipeline) -> None:
    batch = faces(1)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert tiny_pipeline.restore(batch.to(dtype)).dtype == dtype


def test_nothing_to_do(tiny_pipeline: OSDFacePipeline) -> None:
    assert tiny_pipeline.restore(torch.zeros(0, 3, 512, 512)).shape == (0, 3, 512, 512)


def test_progress_counts_faces(tiny_pipeline: OSDFacePipeline) -> None:
    seen: list[tuple[int, int]] = []
    tiny_pipeline.restore(faces(5), batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_half_precision_keeps_the_tokens(tiny_checkpoint: Path, tiny_pipeline: OSDFacePipeline) -> None:
    half = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16", engine="eager")
    backbone: Any = half.backbone
    assert next(backbone.predictor.parameters()).dtype == torch.bfloat16
    assert {p.dtype for p in half.vre.parameters()} == {torch.float32}
    batch = faces(3)
    assert half.tokens(batch).equal(tiny_pipeline.tokens(batch))
    assert half.encode_prompt(batch).equal(tiny_pipeline.encode_prompt(batch))
    difference = (half.restore(batch) - tiny_pipeline.restore(batch)).abs()
    assert difference.mean() < 0.02


class Memory:
    """A device on which at most `fits` faces find room; counts the attempts."""

    def __init__(self, pipeline: OSDFacePipeline, fits: int, error: Exception) -> None:
        self.step, self.fits, self.error = pipeline.one_step, fits, error
        self.attempts: list[int] = []

    def __call__(self, chunk: Tensor, prompt: Any, **rest: Any) -> Tensor:
        self.attempts.append(len(chunk))
        if len(chunk) > self.fits:
            raise self.error
        return self.step(chunk, prompt, **rest)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_the_batch_is_halved_when_memory_runs_out(
    tiny_pipeline: OSDFacePipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    batch = faces(7)
    expected = tiny_pipeline.restore(batch)
    memory = Memory(tiny_pipeline, 2, error)
    monkeypatch.setattr(tiny_pipeline, "one_step", memory)
    with caplog.at_level(logging.WARNING):
        result = tiny_pipeline.restore(batch, batch_size=6)
    assert torch.allclose(result, expected, atol=1e-5)
    assert memory.attempts == [6, 3, 2, 2, 2, 1]
    assert [r.getMessage() for r in caplog.records] == [
        "out of memory with 6 faces at once; going on with 3",
        "out of memory with 3 faces at once; going on with 2",
    ]


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("shape mismatch")]
)
def test_other_errors_and_a_single_face_too_many_are_raised(
    tiny_pipeline: OSDFacePipeline, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    memory = Memory(tiny_pipeline, 0, error)
    monkeypatch.setattr(tiny_pipeline, "one_step", memory)
    with pytest.raises(type(error)):
        tiny_pipeline.restore(faces(2), batch_size=2)
    assert memory.attempts == ([2, 1] if "memory" in str(error) else [2])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 64, 64), r"faces are \(3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), r"faces are \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"torch\.uint8, expected .* float in \[0, 1\]"),
        (torch.zeros(1, 3, 7, 64), "64x7 px, expected at least 8x8"),
        (torch.full((1, 3, 64, 64), 255.0), "values from 255 to 255, expected 0 to 1"),
    ],
)
def test_wrong_tensors(tiny_pipeline: OSDFacePipeline, bad: Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        tiny_pipeline.restore(bad)


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_wrong_strength(tiny_pipeline: OSDFacePipeline, strength: float) -> None:
    with pytest.raises(OptionError, match=r"expected 0\.\.1"):
        tiny_pipeline.restore(faces(1), strength=strength)


def test_wrong_color_fix(tiny_pipeline: OSDFacePipeline) -> None:
    with pytest.raises(ConfigError, match="`color_fix` is 'sepia', expected one of none, adain"):
        tiny_pipeline.restore(faces(1), color_fix="sepia")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("toaster", "`device` is 'toaster', expected auto, cpu"),
        ("cuda:99", "no device cuda:99 here"),
        ("meta", "`device` is 'meta', expected auto"),
    ],
)
def test_wrong_device(tiny_checkpoint: Path, device: str, message: str) -> None:
    with pytest.raises(OSDFaceError, match=message):
        OSDFacePipeline.from_pretrained(tiny_checkpoint, device=device)


def test_wrong_dtype(tiny_checkpoint: Path) -> None:
    with pytest.raises(OSDFaceError, match="`dtype` is 'fp8', expected one of auto, fp32"):
        OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp8")


def test_moving_and_showing(tiny_checkpoint: Path) -> None:
    pipeline = OSDFacePipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", engine="eager")
    batch = faces(1)
    expected = pipeline.restore(batch)
    assert repr(pipeline) == (
        "OSDFacePipeline('tiny', device='cpu', dtype=float32, engine='eager', timestep=399)"
    )
    assert pipeline.to("cpu", torch.float32) is pipeline
    assert pipeline.restore(batch).equal(expected)
    assert "dtype=bfloat16" in repr(pipeline.to("bf16"))
    backbone: Any = pipeline.backbone
    assert next(backbone.predictor.parameters()).dtype == torch.bfloat16
    assert next(pipeline.vre.parameters()).dtype == torch.float32
    with pytest.raises(OSDFaceError, match="no device cuda:99 here"):
        pipeline.to("cuda:99")


def test_prompts_from_elsewhere(tiny_pipeline: OSDFacePipeline) -> None:
    tiny = tiny_pipeline
    bare = FacePipeline(tiny.config, None, tiny.backbone, device=torch.device("cpu"), dtype=torch.float32)
    batch = faces(2)
    assert bare.restore(batch, prompt=tiny.encode_prompt(batch)).equal(tiny.restore(batch))
    for call in (bare.restore, bare.encode_prompt, bare.tokens):
        with pytest.raises(ConfigError, match="no prompt encoder"):
            call(batch)
