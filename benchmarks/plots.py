"""The bench's pictures, with matplotlib from the `demo` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osdface_core.errors import ConfigError
from osdface_core.files import replacing

from .cost import STEPS, USUAL_FACES, USUAL_MEGAPIXELS


def cost(result: dict[str, Any], path: Path) -> None:
    """Four panels: the model by faces and by batch, the photo path by faces and by megapixels."""
    figure, axes = _figure(2, 2)
    _points(axes[0], result["model_faces"], ["model"], [result["fits"]["model by faces"]])
    _points(axes[1], result["model_batch"], ["model, per face"])
    for axis, rows, what in ((axes[2], "photo_faces", "faces"), (axes[3], "photo_pixels", "megapixels")):
        _points(axis, result[rows], STEPS, [result["fits"][f"{step} by {what}"] for step in STEPS])
    labels = (
        "faces",
        "faces at once",
        f"faces, {USUAL_MEGAPIXELS:g} megapixels",
        f"megapixels, {USUAL_FACES} faces",
    )
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xlabel=label, ylabel="seconds", ylim=(0, None))
        axis.legend(fontsize=8)
    _save(figure, path)


def memory(result: dict[str, Any], path: Path) -> None:
    """The process's memory over the photos of a folder."""
    figure, (axis,) = _figure(1, 1)
    axis.plot(range(1, result["photos"] + 1), result["resident_mib"], linewidth=0.8)
    axis.set(xlabel="photos done", ylabel="resident memory [MiB]", ylim=(0, None))
    _save(figure, path)


def _points(
    axis: Any, rows: Sequence[Sequence[float]], names: Sequence[str], fits: Sequence[dict[str, float]] = ()
) -> None:
    """Measured values as dots, fitted lines through them."""
    x = [row[0] for row in rows]
    for i, name in enumerate(names):
        axis.plot(x, [row[i + 1] for row in rows], "o" if fits else "o-", color=f"C{i}", label=name)
        if fits:
            ends = (0, max(x))
            axis.plot(ends, [fits[i]["fixed"] + fits[i]["slope"] * end for end in ends], color=f"C{i}")


def _figure(rows: int, columns: int) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('--plot needs matplotlib: pip install "osdface[demo]"') from error
    figure = Figure(figsize=(4.5 * columns + 0.5, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).flatten()


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
