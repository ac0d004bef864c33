"""metrics.jsonl as curves: one panel per quantity, one line per branch or profile, phases marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osdface_core.files import replacing

from .journal import read_metrics

_FACTS = ("step", "kind", "phase")


@dataclass
class Line:
    """One curve: `steps[i]` → `values[i]`; `held_out` when it was measured on the hold-out."""

    label: str
    held_out: bool
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def read_panels(metrics: Path) -> dict[str, list[Line]]:
    """Curves grouped by quantity, the last part of a scalar's name: `hq/l1` and `lq/l1` share panel `l1`.

    `…/codes/distinct` goes to `codes/distinct`; a score of the input (`…_lq`) joins the output's panel.
    """
    lines: dict[tuple[str, str, bool], Line] = {}
    for row in read_metrics(metrics):
        held_out = row.get("kind") == "val"
        for name, value in row.items():
            if name in _FACTS or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            panel, label = _split(name)
            line = lines.setdefault((panel, label, held_out), Line(label, held_out))
            line.steps.append(row["step"])
            line.values.append(float(value))
    panels: dict[str, list[Line]] = {}
    for (panel, _, _), line in lines.items():
        panels.setdefault(panel, []).append(line)
    return panels


def _split(name: str) -> tuple[str, str]:
    """Panel and label of a scalar."""
    *branch, last = name.split("/")
    if branch and branch[-1] == "codes":
        return f"codes/{last}", "/".join(branch[:-1])
    quantity = last.removesuffix("_lq")
    label = "/".join(branch) or quantity
    return quantity, label if quantity == last else f"{label} (input)"


def phase_starts(metrics: Path) -> list[tuple[int, str]]:
    """First logged step of each phase, when there are several."""
    starts: dict[str, int] = {}
    for row in read_metrics(metrics):
        if "phase" in row:
            starts.setdefault(str(row["phase"]), row["step"])
    return [(step, phase) for phase, step in starts.items()] if len(starts) > 1 else []


def draw_curves(
    panels: dict[str, list[Line]], starts: Sequence[tuple[int, str]], target: Path, tokens: int = 77
) -> None:
    """Write all panels as one PNG.

    Args:
        starts: phases to mark.
        tokens: prompt length, a reference line in the panels of distinct codes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(15, 3.2 * rows))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, name, lines, starts)
        if name in ("codes/distinct", "codes/distinct_min"):
            axis.axhline(tokens, color="black", linewidth=0.8, linestyle=":", label=f"{tokens} = full prompt")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, frameon=False)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    figure.subplots_adjust(0.04, 0.35 / rows, 0.99, 1 - 0.25 / rows, 0.15, 0.3)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def _draw_panel(axis: Any, name: str, lines: list[Line], starts: Sequence[tuple[int, str]]) -> None:
    labels = sorted({line.label for line in lines})
    for line in lines:
        style = {"linestyle": "--", "marker": "o", "markersize": 3} if line.held_out else {"linewidth": 1.0}
        label = f"{line.label} (hold-out)" if line.held_out else line.label
        axis.plot(line.steps, line.values, label=label, color=f"C{labels.index(line.label) % 10}", **style)
    for step, phase in starts:
        axis.axvline(step, color="grey", linewidth=0.6)
        axis.text(
            step, 1.0, f" {phase}", transform=axis.get_xaxis_transform(), fontsize=7, va="top", color="grey"
        )
    axis.set_title(name, fontsize=10)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
