"""Colour transfer: statistics, bands and luma arrive where they should; grey stays exactly grey."""

from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osdface_core.choices import ColorFix
from osdface_core.color import adain, color_fix, keep_grey, low_pass, luma
from osdface_core.errors import ConfigError

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def crops(seed: int, size: int = 64, coarse: int = 6) -> torch.Tensor:
    """Two smooth coloured pictures in 0.2 to 0.8."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(2, 3, coarse, coarse, generator=generator)
    return torch.nn.functional.interpolate(small, (size, size), mode="bicubic").clamp(0, 1) * 0.6 + 0.2


def test_none_returns_the_restored():
    restored = crops(0)
    assert torch.equal(color_fix(restored, crops(1), "none"), restored)


def test_adain_takes_mean_and_spread():
    restored, reference = crops(0), crops(1)
    fixed = adain(restored, reference)
    for image, target in zip(fixed, reference, strict=True):
        assert torch.allclose(image.mean(dim=(1, 2)), target.mean(dim=(1, 2)), atol=1e-5)
        assert torch.allclose(image.std(dim=(1, 2)), target.std(dim=(1, 2)), atol=1e-5)
    assert torch.allclose(color_fix(restored, restored, "adain"), restored, atol=1e-5)
    flat = torch.full_like(restored, 0.5)
    assert torch.isfinite(color_fix(flat, reference, "adain")).all()


def test_wavelet_swaps_what_is_coarse_and_keeps_what_is_fine():
    detail = torch.zeros(1, 3, 128, 128)
    detail[..., ::2, ::2] = 0.1
    restored = torch.full((1, 3, 128, 128), 0.3) + detail
    reference = torch.full((1, 3, 128, 128), 0.6)
    reference[:, 0] = 0.5
    fixed = color_fix(restored, reference, "wavelet")
    assert torch.allclose(fixed.mean(dim=(2, 3)), reference.mean(dim=(2, 3)), atol=1e-3)
    assert float((fixed - reference).std()) == pytest.approx(float(detail.std()), rel=0.02)
    assert torch.allclose(low_pass(reference), reference, atol=1e-6)  # a constant has nothing fine


def test_luma_keeps_brightness_and_takes_colour():
    restored, reference = crops(0), crops(1)
    fixed = color_fix(restored, reference, "luma")
    assert torch.allclose(luma(fixed), luma(restored), atol=2e-3)
    flat = torch.tensor([0.6, 0.4, 0.3]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    tinted = color_fix(torch.full((1, 3, 32, 32), 0.5), flat, "luma")
    difference = (tinted - luma(tinted)) - (flat - luma(flat))
    assert float(difference.abs().max()) < 1e-5
    dark = color_fix(torch.full((1, 3, 32, 32), 0.02), flat, "luma")
    assert torch.allclose(luma(dark), torch.tensor(0.02), atol=1e-4) and float(dark.min()) >= 0


@QUICK
@given(st.sampled_from(get_args(ColorFix)), st.integers(0, 1000), st.floats(0, 1), st.integers(1, 40))
def test_grey_stays_exactly_grey(mode, seed, contrast, size):
    generator = torch.Generator().manual_seed(seed)
    grey = torch.rand(1, 1, size, size, generator=generator).mul(contrast).expand(1, 3, size, size)
    colour = torch.rand(1, 3, size, size, generator=generator)
    fixed = color_fix(torch.rand(1, 3, size, size, generator=generator), grey, mode)
    assert torch.equal(fixed[:, 0], fixed[:, 1]) and torch.equal(fixed[:, 1], fixed[:, 2])
    mixed = color_fix(torch.rand(2, 3, size, size, generator=generator), torch.cat((grey, colour)), mode)
    assert torch.equal(mixed[0, 0], mixed[0, 2])
    assert float(mixed.min()) >= 0 and float(mixed.max()) <= 1 and torch.isfinite(mixed).all()


def test_nearly_grey_is_colour():
    reference = torch.full((1, 3, 8, 8), 0.5)
    reference[0, 0, 3, 3] = 0.501
    restored = torch.rand(1, 3, 8, 8)
    assert torch.equal(keep_grey(restored, reference), restored)


def test_types_and_errors():
    half = crops(0).half()
    assert color_fix(half, crops(1), "wavelet").dtype == torch.float16
    with pytest.raises(ConfigError, match="expected one of none, adain"):
        color_fix(half, half, "lab")
    with pytest.raises(ConfigError, match="expected the same"):
        color_fix(half, half[:1], "none")
