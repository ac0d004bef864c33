"""report.html of a run, one offline file: validation scores, use of the codebook, curves, samples, recipe."""

import base64
import html
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from osdface_core.errors import ConfigError
from osdface_core.files import replacing, write_text

from .logging import read_metrics

_FACTS = ("step", "kind", "phase")
_STYLE = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px}img{max-width:100%}"


@dataclass
class Curve:
    """One curve: `steps[i]` → `values[i]`; `validated` when it was measured on the validation faces."""

    label: str
    validated: bool
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def read_panels(metrics: Path) -> dict[str, list[Curve]]:
    """Group curves by quantity, the last part of a scalar's name: `hq/l1` and `lq/l1` share panel `l1`.

    `…/codes/distinct` goes to `codes/distinct`; a score of the input (`…_lq`) joins the output's panel.
    """
    panels: dict[str, dict[tuple[str, bool], Curve]] = {}
    for row in read_metrics(metrics):
        validated = row.get("kind") == "val"
        for name, value in row.items():
            if name in _FACTS or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            panel, label = _split(name)
            curves = panels.setdefault(panel, {})
            curve = curves.setdefault((label, validated), Curve(label, validated))
            curve.steps.append(row["step"])
            curve.values.append(float(value))
    return {panel: list(curves.values()) for panel, curves in panels.items()}


def _split(name: str) -> tuple[str, str]:
    """Split a scalar's name into panel and label."""
    *branch, last = name.split("/")
    if branch and branch[-1] == "codes":
        return f"codes/{last}", "/".join(branch[:-1])
    quantity = last.removesuffix("_lq")
    label = "/".join(branch) or quantity
    return quantity, label if quantity == last else f"{label} (input)"


def phase_starts(metrics: Path) -> list[tuple[int, str]]:
    """Find the first logged step of each phase; [] when there is one phase only."""
    starts: dict[str, int] = {}
    for row in read_metrics(metrics):
        if "phase" in row:
            starts.setdefault(str(row["phase"]), row["step"])
    return [(step, phase) for phase, step in starts.items()] if len(starts) > 1 else []


def draw_curves(panels: dict[str, list[Curve]], starts: list[tuple[int, str]], target: Path) -> None:
    """Write all panels as one PNG; `starts` are the phases to mark."""
    from matplotlib.figure import Figure

    rows = max(1, math.ceil(len(panels) / 3))
    figure = Figure(figsize=(15, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (name, curves) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, name, curves)
        for step, phase in starts:
            axis.axvline(step, color="grey", linewidth=0.6)
            axis.text(step, 1, f" {phase}", transform=axis.get_xaxis_transform(), fontsize=7, va="top")
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def _draw_panel(axis: Any, name: str, curves: list[Curve]) -> None:
    labels = sorted({curve.label for curve in curves})
    for curve in curves:
        style = {"linestyle": "--", "marker": "o", "markersize": 3} if curve.validated else {"linewidth": 1.0}
        label = f"{curve.label} (validation)" if curve.validated else curve.label
        axis.plot(curve.steps, curve.values, label=label, color=f"C{labels.index(curve.label) % 10}", **style)
    if name in ("codes/distinct", "codes/distinct_min"):
        axis.axhline(77, color="black", linewidth=0.8, linestyle=":", label="77 = full prompt")
    axis.set_title(name, fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, frameon=False)


def write_report(folder: Path, stage: str) -> Path:
    """Write `curves.png` and `report.html` into a stage's folder, from its metrics.jsonl, samples and recipe.

    Returns: the HTML file, without links to the net.
    Raises:
        ConfigError: matplotlib is missing, or the folder holds no metrics.
    """
    panels = read_panels(folder / "metrics.jsonl")
    if not panels:
        raise ConfigError(f"{folder} has no metrics.jsonl with values: train first")
    try:
        draw_curves(panels, phase_starts(folder / "metrics.jsonl"), folder / "curves.png")
    except ImportError:
        raise ConfigError("the report needs matplotlib: pip install matplotlib") from None
    pictures = [folder / "curves.png", *sorted((folder / "samples").glob("step_*.png"))]
    shown = dict.fromkeys([pictures[0], *pictures[1:2], pictures[-1]])
    recipe = (folder / "recipe.toml").read_text(encoding="utf-8")
    page = [
        f"<!doctype html><meta charset=utf-8><title>{stage}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(stage)}: {html.escape(folder.parent.name)}</h1>",
        *(f"<p>{html.escape(sentence)}</p>" for sentence in _verdicts(panels)),
        *(f"<h2>{path.stem.replace('_', ' ')}</h2>{_picture(path)}" for path in shown),
        f"<h2>recipe</h2><pre>{html.escape(recipe)}</pre>",
    ]
    write_text(folder / "report.html", "\n".join(page))
    return folder / "report.html"


def _verdicts(panels: dict[str, list[Curve]]) -> Iterator[str]:
    """Say how the validation scores moved and whether the codes fill the prompt."""
    for name, curves in panels.items():
        for curve in curves:
            if curve.validated and "input" not in curve.label and "/" not in name:
                values = f"{curve.values[0]:.4g} → {curve.values[-1]:.4g}"
                lowest, highest = min(curve.values), max(curve.values)
                yield f"Validation {name} ({curve.label}): {values}, between {lowest:.4g} and {highest:.4g}."
    for curve in panels.get("codes/distinct", []):
        state = "fills" if curve.values[-1] >= 77 else "does not fill"
        where = f"{curve.label}{', validation' if curve.validated else ''}"
        yield f"Codebook ({where}): {curve.values[-1]:.0f} distinct codes per face, {state} the prompt of 77."


def _picture(path: Path) -> str:
    """Embed a picture as JPEG, at most 1200 px wide."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    if small.width > 1200:
        small = small.resize((1200, math.ceil(small.height * 1200 / small.width)))
    buffer = io.BytesIO()
    small.save(buffer, "jpeg", quality=90)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
