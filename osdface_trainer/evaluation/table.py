"""A report as text, for the terminal and for the gallery."""

import math
from collections.abc import Iterator

from .intervals import Interval
from .scores import GroupSummary, MetricSummary, Report

HEADER = ["metric", "", "restored [95 %]", "input [95 %]", "restored/input", "improved"]
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "one": "1 is ideal"}


def to_text(report: Report) -> str:
    """Lay the report out as text: a table per profile and group, then what is missing or failed."""
    parts = [_table(summary, report) for summary in report.summaries()]
    for what, found in (("not measured", report.missing), ("failed", report.failed)):
        if found:
            parts.append(f"{what}:\n" + "\n".join(f"  {name}: {why}" for name, why in found.items()))
    for side, names in report.unmatched.items():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        parts.append(f"{len(names)} unmatched ({side}): {shown}")
    return "\n\n".join([*parts, *report.notes]) + "\n"


def align(rows: list[list[str]]) -> list[str]:
    """Lay rows of cells out in columns, the header first; columns beyond the longest row go."""
    width = max(len(row) for row in rows[1:]) if len(rows) > 1 else 2
    rows = [[*row, *[""] * width][:width] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(widths[i]) for i, text in enumerate(row)).rstrip() for row in rows]


def _table(summary: GroupSummary, report: Report) -> str:
    count = "1 image" if summary.n == 1 else f"{summary.n} images"
    group = "=".join(summary.group) if summary.group else ""
    title = ", ".join(part for part in (summary.profile, group) if part)
    rows = [_cells(line) for line in summary.lines if line.restored.n]
    rows += list(_set_cells(report, summary.profile)) if summary.group is None else []
    return "\n  ".join([f"{title}: {count}" if title else count, *align([HEADER, *rows])])


def _cells(line: MetricSummary) -> list[str]:
    name = line.column.name + (f" [{line.column.unit}]" if line.column.unit else "")
    row = [name, DIRECTIONS[line.column.better], _number(line.restored, line.column.digits)]
    if line.input and line.ratio:
        share = "" if line.improved is None else f"{100 * line.improved:.0f} %"
        row += [_number(line.input, line.column.digits), _number(line.ratio, 3), share]
    return row


def _number(interval: Interval, digits: int) -> str:
    if not interval.n:
        return "-"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _set_cells(report: Report, profile: str) -> Iterator[list[str]]:
    """Write the lines of the metrics over whole sets (FID, KID), in the form of `_cells`."""
    for column in report.set_columns:
        values = report.sets.get(profile, {}).get(column.name, {})
        known = [values[side] for side in ("restored", "input") if math.isfinite(values.get(side, math.nan))]
        if known:
            yield [column.name, DIRECTIONS[column.better], *(f"{value:.{column.digits}f}" for value in known)]
