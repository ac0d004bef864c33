"""A report as text for the terminal, and the cells that the gallery's table shares with it."""

import math

from .intervals import Interval, finite
from .scores import GroupSummary, MetricSummary, Report


def to_text(report: Report) -> str:
    """Lay the report out for a terminal: a table per profile and group, then what is missing or failed."""
    parts = [_table(summary, report) for summary in report.summaries()]
    if report.missing:
        parts.append(
            "not measured:\n" + "\n".join(f"  {name}: {why}" for name, why in report.missing.items())
        )
    for side, names in report.unmatched.items():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        parts.append(f"{len(names)} unmatched ({side}): {shown}")
    if report.failed:
        parts.append("failed:\n" + "\n".join(f"  {name}: {why}" for name, why in report.failed.items()))
    return "\n\n".join([*parts, *report.notes]) + "\n"


def title(summary: GroupSummary) -> str:
    """Name a summary in one line: profile, group, number of images."""
    parts = [summary.profile, "=".join(summary.group) if summary.group else ""]
    name = ", ".join(part for part in parts if part)
    count = "1 image" if summary.n == 1 else f"{summary.n} images"
    return f"{name}: {count}" if name else count


def cells(line: MetricSummary) -> list[str]:
    """Write the texts of one line: name, restored, input, ratio, share of improved images."""
    name = line.column.name + (f" [{line.column.unit}]" if line.column.unit else "")
    direction = {"higher": "higher is better", "lower": "lower is better", "one": "1 is ideal"}[
        line.column.better
    ]
    row = [name, direction, _number(line.restored, line.column.digits)]
    if line.input and line.ratio:
        share = "" if line.improved is None else f"{100 * line.improved:.0f} %"
        row += [_number(line.input, line.column.digits), _number(line.ratio, 3), share]
    return row


def set_cells(report: Report, profile: str) -> list[list[str]]:
    """Write the lines of the metrics over whole sets (FID, KID), in the form of `cells`."""
    found = report.sets.get(profile, {})
    rows = []
    for column in report.set_columns:
        values = found.get(column.name, {})
        numbers = [
            f"{values[side]:.{column.digits}f}"
            for side in ("restored", "input")
            if finite(values.get(side, math.nan)) is not None
        ]
        if numbers:
            rows.append([column.name, "lower is better", *numbers])
    return rows


def _number(interval: Interval, digits: int) -> str:
    if not interval.n:
        return "-"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _table(summary: GroupSummary, report: Report) -> str:
    header = ["metric", "", "restored [95 %]", "input [95 %]", "restored/input", "improved"]
    rows = [cells(line) for line in summary.lines if line.restored.n]
    rows += set_cells(report, summary.profile) if summary.group is None else []
    width = max((len(row) for row in rows), default=2)
    table = [header[:width], *(row + [""] * (width - len(row)) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(width)]
    lines = ["  ".join(text.ljust(widths[i]) for i, text in enumerate(row)).rstrip() for row in table]
    return "\n".join([title(summary), *(f"  {line}" for line in lines)])
