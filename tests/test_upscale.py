"""Enlarging: kind and depth stay, ratios are exact, tiles leave no seam."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from osdface_core import upscale
from osdface_core.errors import CheckpointError, ImageError, OptionError
from osdface_core.photo_array import PhotoArray

CPU = torch.device("cpu")


def enlarge(picture: Any, *arguments: Any) -> Any:
    """`upscale.enlarge` of what a caller holds, as that kind again."""
    result, ratio = upscale.enlarge(PhotoArray.of(picture), *arguments)
    return result.native(), ratio


def photo(height: int = 20, width: int = 30, dtype: Any = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.random((height, width, 3)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_keep_their_type(dtype: Any) -> None:
    result, ratio = enlarge(photo(dtype=dtype), 2.0, None, CPU)
    assert isinstance(result, np.ndarray)
    assert (result.shape, result.dtype, ratio) == ((40, 60, 3), np.dtype(dtype), (2.0, 2.0))


def test_tensors_keep_their_type() -> None:
    result, _ = enlarge(torch.rand(3, 20, 30).half(), 2.0, None, CPU)
    assert isinstance(result, torch.Tensor)
    assert (tuple(result.shape), result.dtype) == ((3, 40, 60), torch.float16)
    assert 0 <= result.min() <= result.max() <= 1


def test_depths_agree() -> None:
    """The same picture in 8 bits, 16 bits and float is enlarged to the same picture."""
    small = photo() // 2 + 64  # no overshoot, which 8 bits cut between the two passes
    eight, _ = enlarge(small, 3.0, None, CPU)
    sixteen, _ = enlarge(small.astype(np.uint16) * 257, 3.0, None, CPU)
    single, _ = enlarge(small.astype(np.float32) / 255, 3.0, None, CPU)
    assert np.abs(np.asarray(sixteen) / 65535 - np.asarray(eight) / 255).max() < 1.5 / 255
    assert np.abs(np.clip(np.asarray(single), 0, 1) - np.asarray(sixteen) / 65535).max() < 1e-4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_flat_picture_stays_flat(dtype: Any) -> None:
    flat = np.full((9, 11, 3), 200 if np.dtype(dtype).kind == "u" else 0.25, dtype)
    result, _ = enlarge(flat, 4.0, None, CPU)
    assert np.allclose(np.asarray(result), flat[0, 0, 0], atol=1e-6)


def test_factor_1_is_the_photo_itself() -> None:
    image = photo()
    result, ratio = enlarge(image, 1.0, None, CPU)
    assert result is image
    assert ratio == (1.0, 1.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(1.0, 16.0))
def test_ratios_are_those_of_the_rounded_sizes(height: int, width: int, factor: float) -> None:
    result, (sx, sy) = enlarge(photo(height, width), factor, None, CPU)
    assert result.shape[:2] == (round(height * factor), round(width * factor))
    assert (sx * width, sy * height) == pytest.approx((result.shape[1], result.shape[0]))


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0, 17.0, float("nan")])
def test_factors_out_of_range(factor: float) -> None:
    with pytest.raises(OptionError, match=r"expected 1\.\.16"):
        enlarge(photo(), factor, None, CPU)


def test_a_result_too_large_to_hold() -> None:
    giant = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (9000, 12000, 3))
    with pytest.raises(ImageError, match=r"12000x9000 times 16\.0 is too large"):
        enlarge(giant, 16.0, None, CPU)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-times super-resolution model that spandrel recognises."""
    pytest.importorskip("spandrel")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.PReLU(8), nn.Conv2d(8, 3 * 2 * 2, 3)]
    path = tmp_path_factory.mktemp("sr") / "x2.pth"
    # As Real-ESRGAN compact models are laid out: convolutions and PReLUs in a list, pixels shuffled last.
    torch.save(nn.ModuleDict({"body": nn.ModuleList(layers)}).state_dict(), path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiles_leave_no_seam(model: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    image = photo(70, 45, dtype)
    whole, _ = enlarge(image, 2.0, model, CPU)
    monkeypatch.setattr(upscale, "TILE", 16)
    tiled, ratio = enlarge(image, 2.0, model, CPU)
    assert ratio == (2.0, 2.0)
    step = 1 if np.dtype(dtype).kind == "u" else 1e-5
    assert np.abs(np.asarray(whole, np.float64) - np.asarray(tiled, np.float64)).max() <= step
    plain, _ = enlarge(image, 2.0, None, CPU)
    assert not np.array_equal(whole, plain)


def test_a_model_of_another_scale_is_resized(model: Path) -> None:
    result, _ = enlarge(photo(), 3.5, model, CPU)
    assert result.shape == (70, 105, 3)
    tensor, _ = enlarge(torch.rand(3, 20, 30), 3.5, model, CPU)
    assert tensor.shape == (3, 70, 105)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    with pytest.raises(CheckpointError, match="no upscale model at"):
        enlarge(photo(), 2.0, tmp_path / "none.pth", CPU)
    for name, content in (("a.pth", b"junk"), ("b.safetensors", b"junk"), ("c.txt", b"junk")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} is no super-resolution model") as error:
            enlarge(photo(), 2.0, tmp_path / name, CPU)
        assert "\n" not in str(error.value)


def test_without_spandrel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("spandrel"):
            raise ImportError("No module named 'spandrel'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(CheckpointError, match=r"needs spandrel: pip install 'osdface\[upscale\]'"):
        enlarge(photo(), 2.0, tmp_path / "x.pth", CPU)
