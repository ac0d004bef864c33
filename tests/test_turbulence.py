"""Turbulence against theory: Noll's covariances, tilt variance, Fried parameter, correlation of points."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import gamma, jv

from osdface_trainer.data import turbulence
from osdface_trainer.data.degrade import degrade
from osdface_trainer.data.turbulence import MODES, coefficients, fried, order, spectrum, transfer, zernike


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return spectrum(torch.Generator().manual_seed(seed))


def covariance(lag: tuple[float, float] = (0.0, 0.0), draws: int = 1) -> torch.Tensor:
    """Of all modes at a lag [pupil radii], D/r0 = 1, expectation over the Gaussian draws."""
    total = torch.zeros(MODES - 1, MODES - 1, dtype=torch.float64)
    for seed in range(draws):
        f, a = drawn(seed)
        total += (
            a * torch.exp(2j * math.pi * (f @ torch.tensor(lag, dtype=torch.float64))) @ a.conj().T
        ).real
    return total / draws


def noll_covariance(i: int, j: int) -> float:
    """Noll 1976, Eq. 25, as Chimitt and Chan print it."""
    (n, m), (o, p) = order(i), order(j)
    if m != p:
        return 0.0
    sign = (-1) ** ((n + o - 2 * abs(m)) // 2)
    above = (
        0.0072
        * math.sqrt((n + 1) * (o + 1))
        * math.pi ** (8 / 3)
        * gamma(14 / 3)
        * gamma((n + o - 5 / 3) / 2)
    )
    below = gamma((n - o + 17 / 3) / 2) * gamma((o - n + 17 / 3) / 2) * gamma((n + o + 23 / 3) / 2)
    return sign * above / below


def test_nolls_order() -> None:
    assert [order(j) for j in range(1, 12)] == [
        (0, 0), (1, 1), (1, -1), (2, 0), (2, -2), (2, 2), (3, -1), (3, 1), (3, -3), (3, 3), (4, 0)
    ]  # fmt: skip


def test_polynomials_are_orthonormal_on_the_disc() -> None:
    axis = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = torch.hypot(x, y) <= 1
    values = torch.stack([zernike(j, x[inside], y[inside]) for j in range(1, 16)])
    torch.testing.assert_close(values @ values.T / inside.sum(), torch.eye(15).double(), atol=0.02, rtol=0)


def test_modes_covary_as_noll_says() -> None:
    found = covariance(draws=8)
    expected = torch.tensor(
        [[noll_covariance(i, j) for j in range(2, MODES + 1)] for i in range(2, MODES + 1)]
    )
    scale = expected.diagonal().sqrt()
    relative = (found - expected) / (scale[:, None] * scale)
    assert relative.abs().max() < 0.03, "of both standard deviations"


def test_tilt_has_the_variance_of_theory() -> None:
    """σ² = 0.182 (λ/D)² (D/r0)^5/3 per axis; a pixel is λ/2D, so 0.728 px² at D/r0 = 1."""
    shifts = []
    for seed in range(150):
        source = torch.Generator().manual_seed(seed)
        f, a = spectrum(source, 48, 16)
        shifts.append(4 / math.pi * coefficients(f, a[:2], torch.zeros(1), torch.zeros(1), source).flatten())
    assert torch.stack(shifts).square().mean().item() == pytest.approx(0.728, rel=0.15)
    assert (16 / math.pi**2 * covariance()[0, 0]).item() == pytest.approx(0.728, rel=0.03)


def test_phase_has_the_fried_parameter_asked_for() -> None:
    """D(d) = 6.88 (d/r0)^5/3, from covariances and Zernike polynomials at pairs of points."""
    c, found = covariance(draws=4), []
    for distance in (0.5, 0.8, 1.2):  # [pupil radii]; below, the modes left out would count
        axis = torch.linspace(-1, 1, 21, dtype=torch.float64)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        kept = (torch.hypot(x, y) <= 1) & (torch.hypot(x + distance, y) <= 1)
        x, y = x[kept], y[kept]
        change = torch.stack([zernike(j, x + distance, y) - zernike(j, x, y) for j in range(2, MODES + 1)])
        structure = torch.einsum("ip,ij,jp->p", change, c, change).mean().item()
        found.append(distance / 2 / (structure / 6.88) ** (3 / 5))  # r0 in D, which was drawn as 1
    assert found == pytest.approx([1.0, 1.0, 1.0], rel=0.05)


@pytest.mark.parametrize("separation", [0.5, 2.0])
def test_tilts_of_two_points_correlate_as_chanan_says(separation: float) -> None:
    """∫ζ^-14/3 J2²(ζ)(J0(2sζ) ∓ J2(2sζ))dζ, along and across the separation s [D]."""

    def integral(sign: int, s: float) -> float:
        def inside(z: float) -> float:
            return z ** (-14 / 3) * jv(2, z) ** 2 * (jv(0, 2 * s * z) + sign * jv(2, 2 * s * z))

        return quad(inside, 1e-9, 1)[0] + quad(inside, 1, 60, limit=400)[0]

    found, here = covariance((2 * separation, 0.0), draws=12), covariance(draws=12)
    for mode, sign in ((0, -1), (1, 1)):
        expected = integral(sign, separation) / integral(sign, 0.0)
        assert (found[mode, mode] / here[mode, mode]).item() == pytest.approx(expected, abs=0.03)


def test_fried_parameter_of_a_path() -> None:
    path = quad(lambda z: turbulence.CN2 * (z / 3e4) ** (5 / 3), 0, 3e4)[0]
    k = 2 * math.pi / turbulence.WAVELENGTH
    assert fried(3e4) == pytest.approx((0.423 * k**2 * path) ** (-3 / 5))
    assert fried(4e4) < fried(2e4)


def test_without_aberrations_the_aperture_alone_blurs() -> None:
    """The transfer function of a clear circle: 2/π (arccos f - f √(1 - f²)) up to the cut-off."""
    optics = transfer(torch.zeros(MODES - 3, 1))[0].real
    for bin_ in (0, 12, 24, 36):
        f = bin_ / turbulence.PUPIL
        assert optics[0, bin_].item() == pytest.approx(
            2 / math.pi * (math.acos(f) - f * math.sqrt(1 - f * f)), abs=0.01
        )


def test_as_a_degradation() -> None:
    axis = torch.linspace(-1, 1, 96)
    picture = (torch.hypot(axis[:, None], axis[None]) < 0.7).float().expand(2, 3, 96, 96)
    one, two = degrade(picture, "turbulence", [1, 2])
    assert not torch.equal(one, two) and torch.equal(degrade(picture[:1], "turbulence", [2])[0], two)
    assert one.mean().item() == pytest.approx(picture[0].mean().item(), abs=0.05)
    near, far = (turbulence.turbulent(picture[:1], length, 3) for length in (2e4, 4e4))
    assert (far - picture[0]).abs().mean() > (near - picture[0]).abs().mean() > 0.01
    grey = torch.full((1, 3, 40, 56), 0.3)
    torch.testing.assert_close(turbulence.turbulent(grey, 3e4, 0), grey, atol=1e-4, rtol=0)
