"""NIQE: its pieces against independent formulas, the whole against a literal version, and its behaviour."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from scipy.special import gamma

from osdface_core.errors import CheckpointError
from osdface_trainer.metrics import niqe


def literal_aggd(values: np.ndarray) -> tuple[float, float, float]:
    """Moment matching by exhaustive search, one sample set at a time."""
    grid = np.arange(0.2, 10.001, 0.001)
    curve = gamma(2 / grid) ** 2 / gamma(1 / grid) / gamma(3 / grid)
    left = np.sqrt(np.mean(values[values < 0] ** 2))
    right = np.sqrt(np.mean(values[values > 0] ** 2))
    g = left / right
    r = np.mean(np.abs(values)) ** 2 / np.mean(values**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shape = grid[np.argmin((curve - r) ** 2)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def literal_features(level: np.ndarray, window: np.ndarray, side: int) -> np.ndarray:
    mean = ndimage.convolve(level, window, mode="nearest")
    deviation = np.sqrt(np.abs(ndimage.convolve(level**2, window, mode="nearest") - mean**2))
    normal = (level - mean) / (deviation + 1)
    rows = []
    for top in range(0, level.shape[0], side):
        for left in range(0, level.shape[1], side):
            block = normal[top : top + side, left : left + side]
            shape, low, high = literal_aggd(block.ravel())
            row = [shape, (low + high) / 2]
            for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
                product = block * np.roll(np.roll(block, dy, 0), dx, 1)
                shape, low, high = literal_aggd(product.ravel())
                row += [shape, (high - low) * gamma(2 / shape) / gamma(1 / shape), low, high]
            rows.append(row)
    return np.array(rows)


def scene(size: int = 320) -> np.ndarray:
    """A grey picture with a natural (1/f) spectrum, values 0…255, fixed."""
    rng = np.random.default_rng(11)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    spectrum = np.fft.fft2(rng.standard_normal((size, size))) / np.maximum(frequency, 1 / size)
    picture = np.real(np.fft.ifft2(spectrum))
    return np.clip(np.round(128 + 45 * (picture - picture.mean()) / picture.std()), 0, 255)


def as_images(grey: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(grey / 255).float().expand(1, 3, *grey.shape)


def test_aggd_recovers_a_generalised_gaussian() -> None:
    for shape in (0.8, 1.0, 2.0):
        samples = stats.gennorm.rvs(shape, scale=1.5, size=200_000, random_state=4)
        found, left, right = niqe.fit_aggd(samples[None])
        assert found[0] == pytest.approx(shape, rel=0.03)
        assert (left[0], right[0]) == pytest.approx((1.5, 1.5), rel=0.03)


def test_aggd_equals_the_exhaustive_search() -> None:
    rng = np.random.default_rng(2)
    sets = rng.standard_normal((40, 300)) * (0.5 + rng.random((40, 1))) + 0.3 * rng.random((40, 1))
    found = np.array(niqe.fit_aggd(sets)).T
    assert found == pytest.approx(np.array([literal_aggd(one) for one in sets]))


def test_a_flat_block_has_no_features() -> None:
    assert np.isnan(niqe.fit_aggd(np.zeros((1, 50)))[0]).all()


def test_halving_keeps_constants_ramps_and_mirrors_borders() -> None:
    ramp = torch.arange(24, dtype=torch.float64).expand(1, 1, 20, 24)
    half = niqe.half_size(ramp)
    assert half.shape == (1, 1, 10, 12) and torch.equal(half, half[:, :, :1].expand_as(half))
    assert torch.allclose(half[0, 0, 0, 3:-3], 2 * torch.arange(12, dtype=torch.float64)[3:-3] + 0.5)
    assert torch.allclose(half.flip(3), 23 - half)
    assert torch.allclose(niqe.half_size(torch.full((1, 1, 20, 24), 7.0)), torch.tensor(7.0))


def test_halving_equals_antialiased_bicubic_away_from_the_border() -> None:
    picture = torch.rand(1, 1, 40, 48, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = torch.nn.functional.interpolate(picture, scale_factor=0.5, mode="bicubic", antialias=True)
    assert torch.allclose(niqe.half_size(picture)[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], atol=1e-9)


def test_luma_is_matlabs_y() -> None:
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).T.reshape(1, 3, 1, 5)
    assert niqe.luma_matlab(colours).flatten().tolist() == [16, 235, 81, 145, 41]


@pytest.fixture(scope="module")
def parameters(shared):
    return shared / "weights" / "niqe_pris_params.npz"


def test_score_equals_the_literal_version(parameters) -> None:
    stored = np.load(parameters)
    grey = scene()
    luma = np.round(grey / 255 * 219 + 16)[:288, :288]
    half = niqe.half_size(torch.from_numpy(luma)[None, None])[0, 0].numpy()
    window = stored["gaussian_window"]
    features = np.hstack([literal_features(luma, window, 96), literal_features(half, window, 48)])
    gap = stored["mu_pris_param"][0] - features.mean(axis=0)
    pooled = (stored["cov_pris_param"] + np.cov(features.T)) / 2
    expected = np.sqrt(gap @ np.linalg.pinv(pooled) @ gap)
    assert niqe.Niqe(parameters)(as_images(grey)).item() == pytest.approx(expected, rel=1e-4)


def test_blur_noise_and_blocking_raise_the_score(parameters, shared) -> None:
    from PIL import Image

    measure = niqe.Niqe(parameters)
    file = shared / "faces" / "val" / "faker_0000.jpg"
    face = np.asarray(Image.open(file).convert("L"), dtype=np.float64)
    rng = np.random.default_rng(0)
    clean = measure(as_images(face)).item()
    assert 2 < clean < 5  # sharp portraits score about 3 to 4
    blurred = [measure(as_images(ndimage.gaussian_filter(face, s))).item() for s in (1, 2, 4)]
    noisy = [
        measure(as_images(np.clip(face + s * rng.standard_normal(face.shape), 0, 255))).item()
        for s in (15, 40)
    ]
    assert clean < blurred[0] < blurred[1] < blurred[2]
    assert clean < noisy[0] < noisy[1]


def test_a_batch_scores_like_its_images(parameters) -> None:
    measure = niqe.Niqe(parameters)
    images = torch.cat([as_images(scene()), as_images(ndimage.gaussian_filter(scene(), 1.5))])
    alone = [measure(image[None]).item() for image in images]
    assert measure(images).tolist() == pytest.approx(alone, rel=1e-9)


def test_too_small_images_have_no_score(parameters) -> None:
    measure = niqe.Niqe(parameters)
    assert torch.isnan(measure(torch.rand(2, 3, 100, 180))).all()
    assert torch.isnan(measure(torch.rand(1, 3, 60, 500))).all()
    assert torch.isfinite(measure(torch.rand(1, 3, 100, 200))).all()


def test_a_wrong_parameter_file_is_named(tmp_path) -> None:
    np.savez(tmp_path / "niqe_pris_params.npz", mu=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"niqe_pris_params\.npz is no NIQE parameter file"):
        niqe.Niqe(tmp_path / "niqe_pris_params.npz")
