"""Eq. 2 against the schedule written out in float64, and against its own forward process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osdface_core.config import CodecConfig, OSDFaceConfig
from osdface_core.errors import OptionError
from osdface_core.one_step import alpha_bar, predict_x0, trust


def schedule(start: float, end: float, steps: int) -> np.ndarray:
    return np.cumprod(1.0 - np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2)


def test_the_released_timestep() -> None:
    assert alpha_bar(OSDFaceConfig()) == pytest.approx(0.42609, abs=2e-5)


@given(st.integers(0, 999))
def test_every_timestep(timestep: int) -> None:
    expected = schedule(0.00085, 0.012, 1000)[timestep]
    assert alpha_bar(OSDFaceConfig(), timestep) == pytest.approx(expected, rel=1e-4)


def test_another_schedule() -> None:
    config = OSDFaceConfig(beta_start=0.01, beta_end=0.02, train_timesteps=50, timestep=10)
    assert alpha_bar(config) == pytest.approx(schedule(0.01, 0.02, 50)[10], rel=1e-5)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_outside_the_schedule(timestep: int) -> None:
    with pytest.raises(OptionError, match=r"expected 0\.\.999"):
        alpha_bar(OSDFaceConfig(), timestep)


@given(st.floats(0.02, 0.999), st.integers(0, 1000))
def test_undoes_the_forward_process(level: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=draw) for _ in range(2))
    noisy = level**0.5 * clean + (1 - level) ** 0.5 * noise
    assert torch.allclose(predict_x0(noisy, noise, level), clean, atol=2e-5 / level**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_works_in_float32(dtype: torch.dtype) -> None:
    latent, eps = torch.randn(1, 4, 8, 8).to(dtype), torch.randn(1, 4, 8, 8).to(dtype)
    result = predict_x0(latent, eps, 0.42609)
    assert result.dtype == torch.float32
    assert torch.equal(result, predict_x0(latent.float(), eps.float(), 0.42609))


def test_a_repainted_face_is_less_of_a_guide() -> None:
    codec = CodecConfig(kind="tiny", least_fidelity=0.8, repainted=(0.5, 0.7))
    change = torch.randn(4, 4, 8, 8).sign() * torch.tensor([0.3, 0.5, 0.6, 0.9]).view(4, 1, 1, 1)
    assert trust(codec, change).shape == (4, 1, 1, 1)
    assert trust(codec, change).flatten().tolist() == pytest.approx([1.0, 1.0, 0.9, 0.8], abs=1e-5)
    assert trust(CodecConfig(), change).flatten().tolist() == [1.0] * 4
