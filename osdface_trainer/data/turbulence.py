"""Atmospheric turbulence as a camera sees it over kilometres (OSDFace, supplement D).

Each point of the picture is seen through its own piece of air. Its aberrations are Zernike coefficients that
are correlated among each other (Noll 1976) and with those of the points around (Chanan 1992): all of them are
filters of one Kolmogorov phase screen, and are drawn here as such, frequency by frequency. Tip and tilt move
the point, the higher orders blur it. Source: Chimitt, Chan 2020 (arXiv 2004.11210), whose pixel is half the
aperture's resolution, λL/2D at the object.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from osdface_core.errors import ConfigError

APERTURE, WAVELENGTH, CN2 = (
    0.2,
    525e-9,
    3e-16,
)  # [m], [m], [m^-2/3]; ours, the supplement names the length only
MODES = 36
"""Noll's last index; what is left out is a hundredth of the phase's variance."""
BLOCK, PUPIL = 16, 48
"""[px] distance of blur kernels; samples across the aperture. A kernel has 2 · PUPIL = 6 · BLOCK px."""


def fried(length: float) -> float:
    """Compute r0 [m] of a spherical wave over `length` [m]: (0.423 k² ∫Cn²(z/L)^5/3 dz)^-3/5 (Fried 1966)."""
    return (0.423 * (2 * math.pi / WAVELENGTH) ** 2 * CN2 * length * 3 / 8) ** (-3 / 5)


def order(noll: int) -> tuple[int, int]:
    """Look up a Zernike polynomial's radial and azimuthal order (n, m) by Noll's index; m < 0 is a sine."""
    n, rest = 0, noll - 1
    while rest > n:
        n += 1
        rest -= n
    m = n % 2 + 2 * ((rest + (n + 1) % 2) // 2)
    return n, m if noll % 2 == 0 else -m


def zernike(noll: int, x: Tensor, y: Tensor) -> Tensor:
    """Evaluate a Zernike polynomial (Noll's normalisation: mean square 1) at points of the unit disc."""
    n, signed = order(noll)
    m, rho, phi = abs(signed), torch.hypot(x, y), torch.atan2(y, x)
    radial = torch.zeros_like(rho)
    for k in range((n - m) // 2 + 1):
        below = math.factorial(k) * math.factorial((n + m) // 2 - k) * math.factorial((n - m) // 2 - k)
        radial += (-1) ** k * math.factorial(n - k) / below * rho ** (n - 2 * k)
    return math.sqrt(n + 1) * radial * _azimuth(signed, phi)


def _azimuth(m: int, phi: Tensor) -> Tensor:
    wave = torch.cos(m * phi) if m >= 0 else torch.sin(-m * phi)
    return wave if m == 0 else math.sqrt(2) * wave


def spectrum(generator: torch.Generator, radial: int = 96, angular: int = 32) -> tuple[Tensor, Tensor]:
    """Draw frequencies, one in each cell of a log-polar grid, and what every mode makes of them.

    Returns:
        (Q, 2) frequencies [cycles per pupil radius], (MODES - 1, Q) complex amplitudes for D/r0 = 1: the
        covariance of modes i, j at a lag d is Re Σ A_i A_j* exp(2πi f·d).
    Source: Noll 1976, Eq. 8 and 21.
    """
    try:
        from scipy.special import jv
    except ImportError:
        raise ConfigError("atmospheric turbulence needs scipy: pip install scipy") from None
    jitter = torch.rand(2, radial, angular, generator=generator, dtype=torch.float64)
    low, high = math.log(1e-7), math.log(8.0)
    step = (high - low) / radial
    k = (low + (torch.arange(radial)[:, None] + jitter[0]) * step).exp().flatten()
    psi = ((torch.arange(angular)[None] + jitter[1]) * math.pi / angular).flatten()
    # Half a plane, hence twice the power; cells of area k² · step · π/angular; R is half of D.
    power = 2 * 0.02290 * 2 ** (-5 / 3) * k ** (-11 / 3) * k**2 * step * math.pi / angular
    rows = []
    for noll in range(2, MODES + 1):
        n, m = order(noll)
        turn = (-1) ** ((n - abs(m)) // 2) * 1j ** abs(m)
        response = math.sqrt(n + 1) * torch.from_numpy(jv(n + 1, 2 * math.pi * k.numpy())) / (math.pi * k)
        rows.append(turn * power.sqrt() * response * _azimuth(m, psi))
    return k[:, None] * torch.stack([psi.cos(), psi.sin()], 1), torch.stack(rows)


def coefficients(
    frequencies: Tensor, amplitudes: Tensor, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw Zernike coefficients on a grid of points, for D/r0 = 1.

    Args:
        frequencies, amplitudes: from `spectrum`, of the modes that are wanted.
        x (C,), y (R,): positions of columns and rows [pupil radii].
    Returns:
        (modes, R, C) float32 [rad].
    """
    draw = torch.randn(2, len(frequencies), generator=generator, dtype=torch.float64)
    waves = [torch.exp(2j * math.pi * frequencies[:, i] * at[:, None]) for i, at in ((0, x), (1, y))]
    across, down = (wave.to(torch.complex64) for wave in waves)
    weights = (amplitudes * torch.complex(draw[0], -draw[1])).to(torch.complex64)
    return torch.stack([((down * weight) @ across.T).real for weight in weights])


def turbulent(image: Tensor, length: float, seed: int) -> Tensor:
    """Look at a picture through `length` metres of air.

    Args:
        image: (1, C, H, W) unit. seed: of the air.
    Returns: (1, C, H, W) unit, same device; computed on the CPU.
    Raises:
        ConfigError: scipy is missing.
    """
    height, width = image.shape[2:]
    source = torch.Generator().manual_seed(seed)
    strength = (APERTURE / fried(length)) ** (5 / 6)  # of amplitudes: (D/r0)^5/3 is that of variances
    pixel = length * WAVELENGTH / APERTURE**2  # [pupil radii]
    frequencies, amplitudes = spectrum(source)
    state = source.get_state()
    tilt = coefficients(
        frequencies, amplitudes[:2], torch.arange(width) * pixel, torch.arange(height) * pixel, source
    )
    source.set_state(state)  # the same air once more
    x, y = (_centres(side) * pixel for side in (width, height))
    high = coefficients(frequencies, amplitudes[2:], x, y, source)
    moved = _warp(image.cpu(), 4 / math.pi * strength * tilt)
    return _blur(moved, strength * high).clamp(0, 1).to(image.device)


def _centres(side: int) -> Tensor:
    return (torch.arange(-(-side // BLOCK)) + 0.5) * BLOCK - 0.5


def _warp(image: Tensor, tilt: Tensor) -> Tensor:
    """Move each pixel by its tilt, (2, H, W) [px]: x, y."""
    height, width = image.shape[2:]
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")) + tilt
    scale = torch.tensor([width, height]).view(2, 1, 1)
    grid = ((2 * grid + 1) / scale - 1).permute(1, 2, 0)[None]
    return F.grid_sample(image, grid, "bicubic", "reflection", align_corners=False)


def transfer(high: Tensor) -> Tensor:
    """Compute each point's optical transfer function, (N, 96, 96) for (MODES - 3, N) [rad]; 1 at zero."""
    axis = (torch.arange(PUPIL) + 0.5) / PUPIL * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    polynomials = torch.stack([zernike(noll, x, y) for noll in range(4, MODES + 1)])
    phase = torch.einsum("mn,mhw->nhw", high, polynomials)
    field = (torch.hypot(x, y) <= 1) * torch.exp(1j * phase)
    kernels = torch.fft.fft2(field, s=(2 * PUPIL, 2 * PUPIL)).abs().square()
    return torch.fft.fft2(kernels / kernels.sum((1, 2), keepdim=True))


def _blur(image: Tensor, high: Tensor) -> Tensor:
    """Blur each block by its own kernel, blocks blended linearly; high: (MODES - 3, R, C)."""
    height, width = image.shape[2:]
    rows, columns = high.shape[1:]
    side = 2 * PUPIL
    reach = side // 2 - BLOCK // 2
    below, right = rows * BLOCK - height + reach, columns * BLOCK - width + reach
    padded = F.pad(image[0], (reach, right, reach, below), mode="replicate")
    ramp = (1 - (torch.arange(side) + 0.5 - side / 2).abs() / BLOCK).clamp(min=0)
    window = ramp[:, None] * ramp
    optics = transfer(high.flatten(1))
    blended = []
    for channel in padded:
        blocks = channel.unfold(0, side, BLOCK).unfold(1, side, BLOCK).flatten(0, 1)
        blurred = torch.fft.ifft2(torch.fft.fft2(blocks) * optics).real * window
        blended.append(_join(blurred, padded.shape[1:]))
    whole = torch.stack(blended) / _join(window.expand(rows * columns, -1, -1), padded.shape[1:])
    return whole[None, :, reach : reach + height, reach : reach + width]


def _join(blocks: Tensor, size: torch.Size) -> Tensor:
    columns = blocks.flatten(1).T[None]
    return F.fold(columns, (size[0], size[1]), blocks.shape[1], stride=BLOCK)[0, 0]
