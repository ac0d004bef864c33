"""One HTML page with everything in it: tables, and every image with a slider LQ | restored | reference.

The page refers to nothing outside itself, so it opens offline and can be mailed.
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

from ..metrics.base import Column
from .intervals import finite
from .page import PAGE
from .scores import GroupSummary, Report, Row, worst_first, write_text
from .table import cells, set_cells, title

LIMIT = 300
"""Images that are embedded at most; of more, the worst ones of each profile are."""
FIRST = 20
"""Images shown before "show more" is pressed."""


def write_gallery(
    path: Path, report: Report, *, heading: str = "Evaluation", verdict: str = "", sort: str | None = None
) -> None:
    """Write the page, whole or not at all.

    Args:
        verdict: preformatted text shown on top (the targets).
        sort: the column that ranks images at first; None takes the report's ranking column.
    """
    write_text(path, render(report, heading=heading, verdict=verdict, sort=sort))


def render(report: Report, *, heading: str = "Evaluation", verdict: str = "", sort: str | None = None) -> str:
    """Render the page as text; arguments as in `write_gallery`."""
    ranked = report.column(sort)
    rows = _embedded(report, ranked)
    with_thumbs = sum(bool(row.thumbs) for row in report.rows)
    note = (
        f"{len(rows)} of {len(report.rows)} images are shown, the worst first."
        if with_thumbs > len(rows)
        else ""
    )
    data = {
        "columns": [
            {"name": c.name, "unit": c.unit, "about": c.about, "better": c.better, "digits": c.digits}
            for c in report.columns
            if report.column(c.name)
        ],
        "rank": ranked.name if ranked else "",
        "first": FIRST,
        "rows": [_row(row) for row in rows],
    }
    replacements = {
        "%HEADING%": html.escape(heading),
        "%VERDICT%": f"<pre>{html.escape(verdict)}</pre>" if verdict else "",
        "%TABLES%": "".join(_table(summary, report) for summary in report.summaries()),
        "%NOTES%": _notes(report, note),
        "%DATA%": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    }
    page = PAGE
    for mark, text in replacements.items():
        page = page.replace(mark, text)
    return page


def _embedded(report: Report, ranked: Column | None) -> list[Row]:
    rows = [row for row in report.rows if row.thumbs]
    if len(rows) <= LIMIT or ranked is None:
        return rows[:LIMIT]
    share = LIMIT // len(report.profiles)
    kept = [
        worst_first([row for row in rows if row.profile == profile], ranked)[:share]
        for profile in report.profiles
    ]
    return [row for group in kept for row in group]


def _row(row: Row) -> dict[str, object]:
    pictures = {side: base64.b64encode(data).decode("ascii") for side, data in row.thumbs.items()}
    return {
        "name": row.name,
        "profile": row.profile,
        "groups": row.groups,
        "restored": {name: finite(value) for name, value in row.restored.items()},
        "input": {name: finite(value) for name, value in row.input.items()},
        "pictures": pictures,
    }


def _table(summary: GroupSummary, report: Report) -> str:
    lines = [line for line in summary.lines if line.restored.n]
    rows = [(line.column.about, cells(line)) for line in lines]
    if summary.group is None:
        abouts = {column.name: column.about for column in report.set_columns}
        rows += [(abouts.get(row[0], ""), row) for row in set_cells(report, summary.profile)]
    width = max((len(row) for _, row in rows), default=3)
    header = ("metric", "", "restored [95 %]", "input [95 %]", "restored / input", "images improved")[:width]
    body = "".join(f'<tr title="{html.escape(about)}">{_cells(row, width)}</tr>' for about, row in rows)
    opened = " open" if summary.group is None else ""
    return (
        f"<details{opened}><summary>{html.escape(title(summary))}</summary>"
        f"<table><tr>{''.join(f'<th>{text}</th>' for text in header)}</tr>{body}</table></details>"
    )


def _cells(row: Sequence[str], width: int) -> str:
    return "".join(f"<td>{html.escape(text)}</td>" for text in [*row, *[""] * (width - len(row))])


def _notes(report: Report, shown: str) -> str:
    lines = [f"{name} was not measured: {why}" for name, why in report.missing.items()]
    lines += [f"unmatched ({side}): {', '.join(names)}" for side, names in report.unmatched.items()]
    lines += [f"failed: {name}: {why}" for name, why in report.failed.items()]
    lines += [*report.notes, *([shown] if shown else [])]
    return f"<ul>{''.join(f'<li>{html.escape(_offline(line))}</li>' for line in lines)}</ul>" if lines else ""


def _offline(text: str) -> str:
    """Strip addresses of their scheme: the page names sources but holds no link."""
    return text.replace("https://", "").replace("http://", "")
