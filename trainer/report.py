"""report.html of a run: did it get better, does the dictionary live, what do the faces look like. Offline."""

import base64
import html
import io
import math
from pathlib import Path

from osdface_core.errors import ConfigError
from osdface_core.files import replacing

from .curves import Line, draw_curves, phase_starts, read_panels

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
