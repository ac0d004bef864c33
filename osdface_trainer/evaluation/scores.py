"""What an evaluation found: values per image, means with intervals, JSON and a text table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..metrics.base import Better, Column
from .intervals import Interval, mean_interval, ratio_interval

FORMAT = 1
Values = dict[str, float]
WORST_BY = ("perceptual", "lpips_vgg", "lpips_alex", "dists", "identity_cos", "ssim", "psnr", "niqe")
"""Columns that rank images for the gallery, first present wins."""


@dataclass
class Row:
    """One image: values of the restored one and, where there is one, of the input that it was made from."""

    name: str
    profile: str
    restored: Values
    input: Values = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    thumbs: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricSummary:
    """One column over a set of images. `improved`: share of images on which restored beats the input."""

    column: Column
    restored: Interval
    input: Interval | None = None
    ratio: Interval | None = None
    improved: float | None = None


@dataclass(frozen=True)
class GroupSummary:
    """All columns over the images of one profile, or of one group within it (`group` is (column, value))."""

    profile: str
    group: tuple[str, str] | None
    n: int
    lines: tuple[MetricSummary, ...]

    def line(self, name: str) -> MetricSummary | None:
        """Return the line of a column, or None where it was not measured."""
        return next((line for line in self.lines if line.column.name == name and line.restored.n), None)


@dataclass
class Report:
    """Everything `osdface evaluate` knows at the end.

    Attributes:
        sets: profile -> column -> {"restored": value, "input": value} of metrics over whole sets (FID, KID).
        missing: metric -> why it could not be computed.
        unmatched: folder -> file names without a partner. failed: image -> why it was left out.
    """

    columns: tuple[Column, ...]
    set_columns: tuple[Column, ...] = ()
    rows: list[Row] = field(default_factory=list)
    sets: dict[str, dict[str, Values]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def profiles(self) -> list[str]:
        """List profiles in the order of appearance; [""] for a plain comparison of folders."""
        return list(dict.fromkeys(row.profile for row in self.rows))

    def column(self, name: str | None = None) -> Column | None:
        """Return the per-image column `name`; without one, the column that ranks images."""
        measured = {name for row in self.rows for name in row.restored}
        known = {column.name: column for column in self.columns if column.name in measured}
        if name is not None:
            return known.get(name)
        return next((known[one] for one in WORST_BY if one in known), next(iter(known.values()), None))

    def summaries(self) -> list[GroupSummary]:
        """Summarise each profile, then one per profile and group."""
        seed = int(self.settings.get("seed", 0))
        keys = list(dict.fromkeys(key for row in self.rows for key in row.groups))
        groups = {pair for row in self.rows for pair in row.groups.items()}
        found = []
        for group in (None, *sorted(groups, key=lambda pair: (keys.index(pair[0]), pair[1]))):
            inside = [row for row in self.rows if group is None or group in row.groups.items()]
            for profile in self.profiles:
                if rows := [row for row in inside if row.profile == profile]:
                    found.append(summarise(profile, group, rows, self.columns, seed))
        return found


def worst_first(rows: Sequence[Row], column: Column) -> list[Row]:
    """Sort rows by the column's restored value, worst first; rows without a value last."""

    def badness(row: Row) -> float:
        value = row.restored.get(column.name, math.nan)
        if not math.isfinite(value):
            return -math.inf
        return {"higher": -value, "lower": value, "one": abs(math.log(max(value, 1e-6)))}[column.better]

    return sorted(rows, key=badness, reverse=True)


def summarise(
    profile: str, group: tuple[str, str] | None, rows: Sequence[Row], columns: Sequence[Column], seed: int
) -> GroupSummary:
    """Compute means, intervals and ratios of every column over `rows`."""
    lines = []
    for column in columns:
        restored, before = (
            np.array([_kept(values, column) for values in side])
            for side in ([row.restored for row in rows], [row.input for row in rows])
        )
        line = MetricSummary(column, mean_interval(restored, seed))
        if np.isfinite(before).any():
            ratio = ratio_interval(restored, before, seed)
            improved = _improved(restored, before, column.better)
            line = MetricSummary(column, line.restored, mean_interval(before, seed), ratio, improved)
        lines.append(line)
    return GroupSummary(profile, group, len(rows), tuple(lines))


def _kept(values: Values, column: Column) -> float:
    value = values.get(column.name, math.nan)
    return math.nan if column.drop_below is not None and value < column.drop_below else value


def _improved(restored: np.ndarray, before: np.ndarray, better: Better) -> float | None:
    both = np.isfinite(restored) & np.isfinite(before)
    a, b = restored[both], before[both]
    gain = {"higher": a - b, "lower": b - a, "one": abs(b - 1) - abs(a - 1)}[better]
    return float((gain > 0).mean()) if len(gain) else None


def finite_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinities, for which JSON has no word, by None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def to_json(report: Report, extra: dict[str, Any] | None = None) -> str:
    """Write the whole report as JSON text; NaN is null."""
    columns = (*report.columns, *report.set_columns)
    document = {
        "format": FORMAT,
        "settings": report.settings,
        "columns": {
            one.name: {"better": one.better, "unit": one.unit, "about": one.about} for one in columns
        },
        "missing": report.missing,
        "unmatched": report.unmatched,
        "failed": report.failed,
        "notes": report.notes,
        "summary": [_summary_dict(summary) for summary in report.summaries()],
        "sets": {
            profile: {name: finite_values(sides) for name, sides in found.items()}
            for profile, found in report.sets.items()
        },
        **(extra or {}),
        "images": [_row_dict(row) for row in report.rows],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)


def _row_dict(row: Row) -> dict[str, Any]:
    before = {"input": finite_values(row.input)} if row.input else {}
    about = {"name": row.name, "profile": row.profile, "groups": row.groups}
    return {**about, "restored": finite_values(row.restored), **before}


def _summary_dict(summary: GroupSummary) -> dict[str, Any]:
    metrics = {}
    for line in summary.lines:
        sides = {"restored": line.restored, "input": line.input, "ratio": line.ratio}
        improved = {"improved": line.improved} if line.input else {}
        metrics[line.column.name] = {
            **{side: finite_values(vars(interval)) for side, interval in sides.items() if interval},
            **improved,
        }
    group = dict(zip(("column", "value"), summary.group, strict=True)) if summary.group else None
    return {"profile": summary.profile, "group": group, "n": summary.n, "metrics": metrics}
