"""Degradation: operators against independent references, determinism per sample, ranges of the profiles."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from osdface_core.errors import ConfigError
from osdface_trainer.data.degrade import degrade
from osdface_trainer.data.degrade_ops import blur, gaussian_kernel, real_jpeg, resize, simulate_jpeg
from osdface_trainer.data.degrade_params import draw_params
from osdface_trainer.data.degrade_profiles import PROFILES, Degradation, DegradationStage
from osdface_trainer.seeds import mix


def picture(size: int = 96, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Smooth shapes with some texture: (1, C, size, size) unit."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 9, 9, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("size", [(31, 40), (64, 64), (96, 96), (130, 110)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_resize_equals_antialiased_interpolate(size, name):
    image = picture(96)
    expected = F.interpolate(image, size=size, mode=name, antialias=True)
    assert (resize(image, size, name) - expected).abs().max() < 1e-4


def test_resize_linear_equals_plain_interpolate_and_area_equals_mean_pooling():
    image = picture(96)
    for size in ((31, 40), (130, 110)):
        expected = F.interpolate(image, size=size, mode="bilinear")
        assert (resize(image, size, "linear") - expected).abs().max() < 1e-4
    assert (resize(image, (24, 32), "area") - F.avg_pool2d(image, (4, 3))).abs().max() < 1e-5
    third = resize(image, (36, 36), "area")  # 8 pixels become 3: each covers two and two thirds
    weights = torch.tensor([1, 1, 2 / 3]) / (8 / 3)
    expected = (image[0, :, :3, :3] * weights[:, None] * weights).sum((1, 2))
    assert (third[0, :, 0, 0] - expected).abs().max() < 1e-5


def test_blur_equals_scipy_gaussian_and_rotates():
    image = picture(80)
    result = blur(image, gaussian_kernel((2.5, 2.5), 0, 8))
    expected = ndimage.gaussian_filter(image.numpy(), (0, 0, 2.5, 2.5), mode="mirror", radius=(0, 0, 8, 8))
    assert np.abs(result.numpy() - expected).max() < 1e-5
    wide, tall = gaussian_kernel((4, 1), 0, 12), gaussian_kernel((4, 1), math.pi / 2, 12)
    assert torch.allclose(wide, tall.T, atol=1e-6)
    axis = torch.arange(-12.0, 13.0)
    assert math.isclose(float((wide.sum(0) * axis**2).sum()) ** 0.5, 4, rel_tol=0.02)
    assert math.isclose(float((wide.sum(1) * axis**2).sum()) ** 0.5, 1, rel_tol=0.02)
    diagonal = gaussian_kernel((4, 1), math.pi / 4, 12)
    assert (diagonal * axis[:, None] * axis[None]).sum() > 5  # long axis along +x, +y


def test_blur_of_a_picture_smaller_than_its_kernel_mirrors_as_often_as_needed():
    part = picture(64)[..., :6, :7]
    expected = ndimage.gaussian_filter(part.numpy(), (0, 0, 3, 3), mode="mirror", radius=(0, 0, 9, 9))
    assert np.abs(blur(part, gaussian_kernel((3, 3), 0, 9)).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("quality", [10, 40, 60, 75, 90, 95, 100])
def test_simulated_jpeg_equals_libjpeg(quality):
    image = torch.round(picture(160, seed=3) * 255) / 255
    real = real_jpeg(image[0], quality)
    simulated = simulate_jpeg(image, quality)[0]
    difference = (real - simulated).abs() * 255
    damage = (real - image[0]).abs().mean() * 255
    assert difference.mean() < 0.75
    assert difference.mean() < 0.12 * damage


def test_real_jpeg_is_pillows():
    image = torch.round(picture(64) * 255) / 255
    buffer = io.BytesIO()
    Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=33)
    expected = np.array(Image.open(buffer))
    assert np.array_equal((real_jpeg(image[0], 33) * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_simulated_jpeg_repeats_the_border_up_to_whole_blocks():
    image = torch.round(picture(50)[..., :41] * 255) / 255
    coarse, fine = simulate_jpeg(image, 20), simulate_jpeg(image, 90)
    assert coarse.shape == image.shape
    assert (coarse - image).abs().mean() > 1.5 * (fine - image).abs().mean()
    assert (coarse - real_jpeg(image[0], 20)).abs().mean() < 0.12 * (coarse - image).abs().mean()


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_simulated_codec_gives_nearly_the_same_pictures(name):
    hq = torch.cat([picture(112, seed=i) for i in range(6)])
    seeds = (5, 77, 1234567890123, 3, 2, 1)
    real, simulated = (degrade(hq, name, seeds, jpeg=jpeg) for jpeg in ("real", "simulated"))
    assert (real - simulated).abs().mean() * 255 < 1.5


def test_a_sample_depends_on_its_seed_alone():
    hq = torch.cat([picture(64, seed=i) for i in range(4)])
    seeds = torch.tensor([11, 12, 13, 14])
    whole = degrade(hq, "mini", seeds)
    assert torch.equal(whole, degrade(hq, "mini", seeds.tolist()))
    assert torch.equal(whole[[2, 0]], degrade(hq[[2, 0]], "mini", seeds[[2, 0]]))
    assert not torch.equal(whole[:1], degrade(hq[:1], "mini", [99]))


def test_draws_stay_in_the_ranges_of_the_evaluation_profiles_and_fill_them():
    expected = {
        "mild": ((0.5, 3), (1, 4), (0, 8), (60, 95)),
        "medium": ((1, 6), (4, 8), (2, 12), (50, 85)),
        "severe": ((2, 10), (8, 16), (4, 15), (40, 75)),
    }
    for name, ranges in expected.items():
        stages = [draw_params(name, seed).stages[0] for seed in range(400)]
        drawn = (
            [value for stage in stages for value in stage.sigma],
            [stage.scale for stage in stages],
            [stage.noise * 255 for stage in stages],
            [stage.quality for stage in stages],
        )
        for values, (low, high) in zip(drawn, ranges, strict=True):
            reach = high - low
            assert low - 1e-9 <= min(values) < low + 0.03 * reach + 1
            assert high - 0.03 * reach - 1 < max(values) <= high + 1e-9
        round_share = np.mean([stage.sigma[0] == stage.sigma[1] for stage in stages])
        assert 0.4 < round_share < 0.6


def test_mixture_takes_its_parts_by_weight():
    names = [draw_params("mini", seed).name for seed in range(2000)]
    for weight, part in PROFILES["mini"].alternatives:
        assert abs(names.count(part.name) / 2000 - weight) < 0.04


def test_identity_and_rounding():
    hq = picture(64)
    result = degrade(hq, "identity", [1])
    assert torch.equal(result, torch.round(hq * 255) / 255)
    free = Degradation("free", (DegradationStage(blur=(1, 1)),), eight_bit=False)
    values = degrade(hq, free, [1]) * 255
    assert (values - values.round()).abs().max() > 0.1


def test_noise_has_the_asked_strength():
    hq = torch.full((1, 3, 256, 256), 0.5)
    flat = Degradation("noise", (DegradationStage(noise=(10, 10)),), eight_bit=False)
    assert math.isclose(float(degrade(hq, flat, [4]).std()) * 255, 10, rel_tol=0.02)
    grey = degrade(hq, Degradation("grey", (DegradationStage(noise=(10, 10), grey_noise=1.0),)), [4])
    assert torch.equal(grey[:, 0], grey[:, 1])
    shot = degrade(hq, Degradation("shot", (DegradationStage(shot=(20, 20)),), eight_bit=False), [4])
    assert math.isclose(float(shot.std()) * 255, 20 * 0.5**0.5, rel_tol=0.02)


def test_grey_and_colour_shift():
    hq = picture(64)
    grey = degrade(hq, Degradation("g", grey_prob=1.0), [1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    shifted = degrade(hq * 0.5 + 0.25, Degradation("s", colour_shift=20, colour_prob=1.0), [1])
    offset = (shifted - (hq * 0.5 + 0.25)).mean((0, 2, 3)) * 255
    assert offset.abs().max() <= 20.5
    assert offset.std() > 1


def test_other_sizes_and_no_samples():
    assert degrade(picture(64)[..., :50], "severe", [1]).shape == (1, 3, 64, 50)
    assert degrade(torch.zeros(0, 3, 64, 64), "mini", []).shape == (0, 3, 64, 64)


def test_errors_name_the_cause():
    hq = picture(32)
    with pytest.raises(ConfigError, match=r"unknown degradation profile 'hard'.*severe"):
        degrade(hq, "hard", [1])
    with pytest.raises(ConfigError, match="2 seeds for 1 images"):
        degrade(hq, "mild", [1, 2])
    with pytest.raises(ConfigError, match="expected float"):
        degrade((hq * 255).byte(), "mild", [1])
    with pytest.raises(ConfigError, match="jpeg is"):
        DegradationStage(jpeg=(0, 50))
    with pytest.raises(ConfigError, match="blur is"):
        DegradationStage(blur=(3, 1))


def test_options_of_a_mixture_hold_for_its_parts():
    hq = picture(64)
    grey = degrade(hq, Degradation("m", alternatives=((1, PROFILES["mild"]),), grey_prob=1.0), [1])
    assert torch.equal(grey[:, 0], grey[:, 1])
    exact = degrade(hq, Degradation("m", alternatives=((1, PROFILES["severe"]),), eight_bit=False), [1])
    assert (exact * 255 - (exact * 255).round()).abs().max() > 0.1


def test_memory_format_does_not_matter():
    hq = torch.cat([picture(64, seed=i) for i in range(2)])
    plain = degrade(hq, "second_order", [1, 2], jpeg="simulated")
    other = degrade(hq.to(memory_format=torch.channels_last), "second_order", [1, 2], jpeg="simulated")
    assert torch.equal(plain, other)


def test_mix_spreads_and_is_stable():
    assert len({mix(a, b) for a in range(100) for b in range(100)}) == 10_000
    assert mix(1, 2) != mix(2, 1)
    assert 0 <= mix(2**64 - 1) < 2**63
    assert mix(0) == 16294208416658607535 >> 1  # first output of SplitMix64 with state 0
