"""report.html of a run: did it get better, does the dictionary live, what do the faces look like. Offline.

Its curves come from metrics.jsonl: one panel per quantity, one line per branch or profile, phases marked.
"""

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osdface_core.errors import ConfigError
from osdface_core.files import replacing

from .logging import read_metrics

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


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem}
img{max-width:100%}table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;
text-align:right}td:first-child,th:first-child{text-align:left}pre{background:#f5f5f5;padding:1rem;overflow:auto}"""


def write_report(folder: Path, stage: str) -> Path:
    """Write `curves.png` and `report.html` into a stage's folder, from its metrics.jsonl, samples and recipe.

    Returns: the HTML file, one file without links to the net.
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
    parts = [
        f"<h1>{html.escape(stage)}: {html.escape(folder.parent.name)}</h1>",
        *_verdicts(panels),
        "<h2>Curves</h2>",
        _picture((folder / "curves.png").read_bytes(), "png"),
        *_samples(folder / "samples"),
        "<h2>Numbers</h2>",
        _table(panels),
        "<h2>Recipe</h2>",
        f"<pre>{html.escape((folder / 'recipe.toml').read_text(encoding='utf-8'))}</pre>",
    ]
    page = f"<!doctype html><meta charset=utf-8><title>{stage}</title><style>{_STYLE}</style>" + "\n".join(
        parts
    )
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _verdicts(panels: dict[str, list[Line]]) -> list[str]:
    """Sentences on the hold-out and the dictionary."""
    sentences = []
    for name, lines in panels.items():
        for line in lines:
            if line.held_out and len(line.values) > 1 and "input" not in line.label and "/" not in name:
                best = _better(name)(line.values)
                at = line.steps[line.values.index(best)]
                sentences.append(
                    f"Hold-out {name} ({line.label}): {line.values[0]:.4g} → {line.values[-1]:.4g}, "
                    f"best {best:.4g} at step {at}."
                )
    for line in panels.get("codes/distinct", []):
        state = "fills" if line.values[-1] >= 77 else "does not fill"
        where = f"{line.label}{', hold-out' if line.held_out else ''}"
        sentences.append(
            f"Dictionary ({where}): {line.values[-1]:.0f} distinct codes per face; "
            f"that {state} the prompt of 77."
        )
    return [f"<p>{html.escape(sentence)}</p>" for sentence in sentences]


def _better(name: str):
    """max for scores, min for distances."""
    return max if name in ("psnr", "ssim", "identity", "accuracy") else min


def _samples(folder: Path) -> list[str]:
    pictures = sorted(folder.glob("step_*.png"))
    if not pictures:
        return []
    shown = dict.fromkeys([pictures[0], pictures[-1]])
    return [
        f"<h2>Samples, {html.escape(path.stem.replace('_', ' '))}</h2>{_picture(_shrunk(path), 'jpeg')}"
        for path in shown
    ]


def _shrunk(path: Path, width: int = 1200) -> bytes:
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
        if small.width > width:
            small = small.resize((width, math.ceil(small.height * width / small.width)))
        buffer = io.BytesIO()
        small.save(buffer, "jpeg", quality=88)
    return buffer.getvalue()


def _picture(data: bytes, kind: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _table(panels: dict[str, list[Line]]) -> str:
    rows = [
        "<tr><th>quantity</th><th>first</th><th>lowest</th><th>highest</th><th>last</th><th>step</th></tr>"
    ]
    for name, lines in panels.items():
        for line in lines:
            label = f"{name} · {line.label}{' · hold-out' if line.held_out else ''}"
            numbers = (line.values[0], min(line.values), max(line.values), line.values[-1])
            cells = "".join(f"<td>{value:.5g}</td>" for value in numbers)
            rows.append(f"<tr><td>{html.escape(label)}</td>{cells}<td>{line.steps[-1]}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
