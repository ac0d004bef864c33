"""Means with bootstrap intervals, ratios and groups: from numbers per image to what a report states."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from osdface_core.errors import ConfigError

RESAMPLES = 2000
LEVEL = 0.95
MANY_VALUES = 8
"""A numeric manifest column with more distinct values than this is cut into quarters of the data."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile-bootstrap interval at 95 %; `n` images took part. NaN when none did."""

    mean: float
    low: float
    high: float
    n: int


@lru_cache(maxsize=8)
def _weights(n: int, seed: int) -> np.ndarray:
    """Draw (RESAMPLES, n) float32: how often an image is in a resample, over n. Same n, same draws."""
    rng = np.random.default_rng([seed, n])
    return (rng.multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES) / n).astype(np.float32)


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Compute the mean over images and its bootstrap interval; NaN is left out, same seed same result."""
    return ratio_interval(values, np.ones(len(values)), seed)


def ratio_interval(
    values: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, seed: int = 0
) -> Interval:
    """Divide the mean of `values` by that of `baseline`, resampled in pairs; NaN pairs are left out."""
    pairs = np.asarray([values, baseline], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    n = pairs.shape[1]
    if n == 0 or pairs[1].mean() == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    above, below = (_weights(n, seed) @ row for row in pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = np.nan_to_num(above / below, nan=np.inf)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(float(pairs[0].mean() / pairs[1].mean()), float(low), float(high), n)


def read_groups(manifest: Path, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read group labels per file stem from a CSV with a `file` (or `name`) column.

    Numeric columns with many values are cut into quarters, named by their range.

    Raises:
        ConfigError: if the file or a column is missing.
    """
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"manifest {manifest} cannot be read ({error}): give a CSV with a column 'file'"
        ) from error
    known = list(rows[0]) if rows else []
    key = next((name for name in ("file", "name", "image") if name in known), None)
    if key is None:
        raise ConfigError(f"manifest {manifest} has columns {known}: one must be 'file', the image's name")
    for column in columns:
        if column not in known:
            raise ConfigError(f"manifest {manifest} has no column {column!r}: choose from {', '.join(known)}")
    labels = {column: _labels([(row[column] or "").strip() for row in rows]) for column in columns}
    stems = [Path((row[key] or "").replace("\\", "/")).stem for row in rows]
    return {stem: {column: labels[column][i] for column in columns} for i, stem in enumerate(stems)}


def _labels(values: list[str]) -> list[str]:
    """Return the values themselves, or the quarter each number falls into; empty cells become `unknown`."""
    numbers: list[float] = []
    for value in values:
        try:
            numbers.append(float(value) if value else math.nan)
        except ValueError:
            return [text or "unknown" for text in values]
    data = np.array(numbers)
    if len(set(data[np.isfinite(data)])) <= MANY_VALUES:
        return [text or "unknown" for text in values]
    edges = np.unique(np.nanpercentile(data, [0, 25, 50, 75, 100]))
    bins = np.clip(np.searchsorted(edges, data, side="right") - 1, 0, len(edges) - 2)
    return [
        f"{edges[b]:g}–{edges[b + 1]:g}" if math.isfinite(x) else "unknown"
        for b, x in zip(bins, data, strict=True)
    ]
