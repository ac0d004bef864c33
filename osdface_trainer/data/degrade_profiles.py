"""Degradation profiles as data: stages, mixtures, and the named ones of the literature and of our tests.

All ranges are uniform draws. Numbers come from published training configs and, for
`mild`, `medium` and `severe`, from the evaluation protocol of this project.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from osdface_core.errors import ConfigError

Range = tuple[float, float]
ResizeKernel = Literal["linear", "bilinear", "area", "bicubic"]


@dataclass(frozen=True)
class DegradationStage:
    """One pass of blur → resize by 1/s → noise → JPEG (→ resize back), x = [(y ⊗ k)↓s + n]_JPEG.

    Args:
        blur: range of the Gaussian σ [px at the stage's input size]; (0, 0) switches blur off.
        kernel: odd side lengths (lo, hi) [px] that truncate the Gaussian; None keeps ±3σ.
        isotropic: probability of a round kernel; otherwise σx, σy are independent and θ ∈ [−π, π].
        blur_prob: probability that blur happens at all.
        scale: range of the downscale factor s; below 1 enlarges.
        log_scale: draw s log-uniformly instead of uniformly.
        resize: kernels to choose from: "bilinear", "area", "bicubic" are antialiased; "linear" is the
            plain two-tap interpolation of OpenCV that aliases.
        noise: range of the Gaussian σ [1/255].
        shot: range of signal-dependent noise, its σ at white [1/255]; grows with the square root.
        grey_noise: probability that the three channels share one noise field.
        noise_prob: probability of noise.
        jpeg: integer qualities (lo, hi) in 1..100; None for no compression.
        jpeg_prob: probability of compression.
        turbulence: metres of air before anything else (turbulence.py); (0, 0) for none.
        prob: probability that the whole stage happens.
        restore: resize back to the size of the original at the end of this stage.
    """

    blur: Range = (0.0, 0.0)
    kernel: tuple[int, int] | None = None
    isotropic: float = 0.5
    blur_prob: float = 1.0
    scale: Range = (1.0, 1.0)
    log_scale: bool = False
    resize: tuple[ResizeKernel, ...] = ("bilinear",)
    noise: Range = (0.0, 0.0)
    shot: Range = (0.0, 0.0)
    grey_noise: float = 0.0
    noise_prob: float = 1.0
    jpeg: tuple[int, int] | None = None
    jpeg_prob: float = 1.0
    turbulence: Range = (0.0, 0.0)
    prob: float = 1.0
    restore: bool = False

    def __post_init__(self) -> None:
        for name in ("blur", "scale", "noise", "shot", "jpeg", "kernel", "turbulence"):
            pair = getattr(self, name)
            if pair is not None and not (len(pair) == 2 and 0 <= pair[0] <= pair[1]):
                raise ConfigError(f"degradation stage: {name} is {pair}, expected 0 <= low <= high")
        for name in ("isotropic", "blur_prob", "grey_noise", "noise_prob", "jpeg_prob", "prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"degradation stage: {name} is {getattr(self, name)}, expected 0 to 1")
        if self.scale[0] < 0.25:
            raise ConfigError(f"degradation stage: scale is {self.scale}, expected at least 0.25")
        if self.jpeg and not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100:
            raise ConfigError(f"degradation stage: jpeg is {self.jpeg}, expected qualities in 1..100")
        if self.kernel and (self.kernel[0] % 2 == 0 or self.kernel[1] % 2 == 0):
            raise ConfigError(f"degradation stage: kernel is {self.kernel}, expected odd sizes")
        kernels = get_args(ResizeKernel)
        if not self.resize or not set(self.resize) <= set(kernels):
            raise ConfigError(f"degradation stage: resize is {self.resize}, expected some of {kernels}")


@dataclass(frozen=True)
class Degradation:
    """A list of stages, or a weighted choice among other degradations.

    Args:
        name: shown in previews and logs.
        stages: run in order; afterwards the picture is resized back (bilinear) to its original size.
        alternatives: (weight, degradation) pairs; each sample takes one. Excludes `stages`.
        grey_prob: probability that the low-quality picture loses its colour. This and the following hold for
            the alternatives too, unless they set their own.
        colour_shift: largest offset per channel [1/255], added to the low-quality picture.
        colour_prob: probability of that offset.
        eight_bit: round the result to 1/255 steps, as a file would hold it.
    """

    name: str
    stages: tuple[DegradationStage, ...] = ()
    alternatives: tuple[tuple[float, "Degradation"], ...] = ()
    grey_prob: float = 0.0
    colour_shift: float = 0.0
    colour_prob: float = 0.0
    eight_bit: bool = True

    def __post_init__(self) -> None:
        if self.stages and self.alternatives:
            raise ConfigError(f"degradation {self.name!r} has both stages and alternatives: give one of them")
        if self.alternatives and not sum(weight for weight, _ in self.alternatives) > 0:
            raise ConfigError(f"degradation {self.name!r}: its weights must sum to more than 0")


def _single(name: str, **ranges: Any) -> Degradation:
    return Degradation(name, (DegradationStage(**ranges),))


def _published(name: str, blur: Range, scale: Range, noise: Range, jpeg: tuple[int, int]) -> Degradation:
    """Build the common operator of GFPGAN's successors: 41-tap kernel, OpenCV bilinear, always applied."""
    return _single(name, blur=blur, kernel=(41, 41), scale=scale, resize=("linear",), noise=noise, jpeg=jpeg)


CLASSIC = _published("classic", (0.1, 10), (0.8, 8), (0, 20), (60, 100))
CODEFORMER_SEVERE = _published("codeformer_severe", (1, 15), (4, 30), (0, 20), (30, 80))
CODEFORMER_MILD = _published("codeformer_mild", (0.1, 10), (1, 12), (0, 15), (60, 100))
DAEFR = _published("daefr", (0.1, 15), (0.8, 30), (0, 20), (30, 100))

_WAVEFACE = DegradationStage(blur=(0.1, 10), scale=(0.8, 16), noise=(0, 15), jpeg=(40, 95), restore=True)
DUAL_STAGE = Degradation("dual_stage", (_WAVEFACE, replace(_WAVEFACE, prob=0.5)))

_ANY_RESIZE: tuple[ResizeKernel, ...] = ("bilinear", "area", "bicubic")
_COMMON: dict[str, Any] = {
    "kernel": (7, 21), "isotropic": 0.6, "log_scale": True, "resize": _ANY_RESIZE, "grey_noise": 0.4,
    "jpeg": (30, 95),
}  # fmt: skip
SECOND_ORDER = Degradation(
    "second_order",
    (
        DegradationStage(blur=(0.2, 3), scale=(0.67, 6.67), noise=(1, 30), shot=(0, 20), **_COMMON),
        DegradationStage(
            blur=(0.2, 1.5), blur_prob=0.8, scale=(0.83, 3.3), noise=(1, 25), shot=(0, 12), **_COMMON
        ),
    ),
)

MILD = _single("mild", blur=(0.5, 3), scale=(1, 4), noise=(0, 8), jpeg=(60, 95))
MEDIUM = _single("medium", blur=(1, 6), scale=(4, 8), noise=(2, 12), jpeg=(50, 85))
SEVERE = _single("severe", blur=(2, 10), scale=(8, 16), noise=(4, 15), jpeg=(40, 75))

TURBULENCE = _single("turbulence", turbulence=(20_000, 40_000))
IDENTITY = Degradation("identity")
NEARLY_CLEAN = _single(
    "nearly_clean",
    blur=(0.1, 0.8), blur_prob=0.5, scale=(1, 1.3), noise=(0, 2), noise_prob=0.5, jpeg=(85, 100),
    jpeg_prob=0.7,
)  # fmt: skip
_KERNELS: tuple[ResizeKernel, ...] = ("bilinear", "area", "linear", "bicubic")
MINI_WIDE = _single(
    "mini_wide",
    blur=(0.1, 12), blur_prob=0.9, scale=(1, 20), resize=_KERNELS, noise=(0, 20), grey_noise=0.3,
    noise_prob=0.9, jpeg=(30, 100), jpeg_prob=0.9,
)  # fmt: skip
MINI_TWICE = Degradation(
    "mini_twice",
    (
        DegradationStage(
            blur=(0.2, 3), scale=(1, 6), log_scale=True, resize=_KERNELS, noise=(0, 12), shot=(0, 8),
            grey_noise=0.3, jpeg=(45, 95),
        ),
        DegradationStage(
            blur=(0.2, 1.5), blur_prob=0.5, scale=(0.7, 2), resize=_KERNELS, noise=(0, 6), noise_prob=0.5,
            jpeg=(45, 95),
        ),
    ),
)  # fmt: skip
MINI = Degradation(
    "mini",
    alternatives=(
        (0.22, MILD),
        (0.25, MEDIUM),
        (0.25, SEVERE),
        (0.10, MINI_WIDE),
        (0.08, MINI_TWICE),
        (0.08, NEARLY_CLEAN),
        (0.02, IDENTITY),
    ),
)

PROFILES: dict[str, Degradation] = {
    profile.name: profile
    for profile in (
        CLASSIC, CODEFORMER_SEVERE, CODEFORMER_MILD, DAEFR, DUAL_STAGE, SECOND_ORDER,
        MILD, MEDIUM, SEVERE, NEARLY_CLEAN, IDENTITY, MINI, TURBULENCE,
    )
}  # fmt: skip


def named_profile(profile: str | Degradation) -> Degradation:
    """Look up a profile by name; a `Degradation` passes through. Raises ConfigError for an unknown name."""
    if isinstance(profile, Degradation):
        return profile
    if profile not in PROFILES:
        raise ConfigError(f"unknown degradation profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[profile]
