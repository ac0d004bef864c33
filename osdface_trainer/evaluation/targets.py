"""The goals of the embedded checkpoint, checked against an evaluation: what must hold at which strength.

All compare the restored image with bicubic upsampling of the same low-quality input, on degraded clean
faces. Besides those, `identity` (the clean face itself as input) must not get worse than a viewer would
notice; the yardstick, of our choice, is the same face as a JPEG of quality 75, libjpeg's default.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .scores import GroupSummary, MetricSummary, Report

PROFILES = ("mild", "medium", "severe", "identity")
CLEAN = "identity"
YARDSTICK_QUALITY = 75


@dataclass(frozen=True)
class Target:
    """One goal: `rule` in words, `value` measured (None where it was not), whether it holds."""

    profile: str
    metric: str
    rule: str
    value: float | None
    passed: bool

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return dict(self.__dict__)


Check = tuple[str, str, Callable[[MetricSummary], float], Callable[[float], bool]]


def _ratio(line: MetricSummary) -> float:
    return line.ratio.mean if line.ratio else math.nan


def _gain(line: MetricSummary) -> float:
    return line.restored.mean - line.input.mean if line.input else math.nan


def _at_most(limit: float) -> tuple[str, Callable[[float], bool]]:
    return f"<= {limit:.2f} x the input's", lambda value: value <= limit


def _perceptual(limit: float) -> Check:
    rule, holds = _at_most(limit)
    return ("perceptual", rule, _ratio, holds)


_DETAIL: Check = (
    "hf_energy",
    "0.8 to 1.2 x the reference's",
    lambda line: line.restored.mean,
    lambda v: 0.8 <= v <= 1.2,
)
_STRONG: tuple[Check, ...] = (
    ("identity_cos", "higher than the input's", _gain, lambda gain: gain > 0),
    ("psnr", "higher than the input's", _gain, lambda gain: gain > 0),
    _DETAIL,
)
CHECKS: dict[str, tuple[Check, ...]] = {
    "mild": (
        _perceptual(0.90),
        ("identity_cos", "at most 0.01 below the input's", _gain, lambda gain: gain >= -0.01),
        _DETAIL,
    ),
    "medium": (_perceptual(0.60), *_STRONG),
    "severe": (_perceptual(0.50), *_STRONG),
    CLEAN: (
        (
            "perceptual",
            f"no farther from the clean face than JPEG {YARDSTICK_QUALITY}",
            _ratio,
            lambda v: v <= 1.0,
        ),
        ("identity_cos", "at least 0.98", lambda line: line.restored.mean, lambda v: v >= 0.98),
    ),
}


def check_targets(report: Report) -> list[Target]:
    """Every goal whose profile was evaluated; a metric that is missing counts as not reached."""
    summaries = {summary.profile: summary for summary in report.summaries(groups=False)}
    return [
        _check(summaries[profile], check)
        for profile in CHECKS
        if profile in summaries
        for check in CHECKS[profile]
    ]


def _check(summary: GroupSummary, check: Check) -> Target:
    metric, rule, read, holds = check
    line = summary.line(metric)
    value = read(line) if line else math.nan
    known = math.isfinite(value)
    return Target(summary.profile, metric, rule, value if known else None, known and holds(value))


def to_text(targets: list[Target]) -> str:
    """A table with one line per goal; differences carry a sign."""
    rows = []
    for target in targets:
        shown = "not measured" if target.value is None else _shown(target)
        rows.append((target.profile, target.metric, shown, target.rule, "pass" if target.passed else "FAIL"))
    table = [("profile", "metric", "measured", "target", ""), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    body = "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
    reached = sum(target.passed for target in targets)
    return f"{body}\n{reached} of {len(targets)} targets reached"


def _shown(target: Target) -> str:
    assert target.value is not None
    difference = "input's" in target.rule and " x " not in target.rule
    return f"{target.value:+.4f}" if difference else f"{target.value:.3f}"
