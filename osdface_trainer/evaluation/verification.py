"""Same person or not: accuracy and curves of cosines of pairs (OSDFace, supplement D), and their plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osdface_core.errors import ConfigError, OSDFaceError
from osdface_core.files import writing

THRESHOLDS = 401
"""Cosines from -1 to 1 at which the curves are read."""
Measured = dict[str, Any]


def verify(cosines: np.ndarray, same: np.ndarray, folds: np.ndarray) -> Measured:
    """Measure how well a threshold on the cosine tells pairs of one person from others.

    Args:
        cosines, same, folds: (N,): of identities; whether it is one person; LFW's split of the pairs.
    Returns:
        accuracy (mean and standard deviation over the folds, each at the threshold that is best on the
        others; the mean of both classes' shares), auc, average_precision, best_f1, and by threshold: roc,
        precision_recall, f1; mean distance ‖a - b‖ of same and different, histograms.
    Raises:
        ConfigError: torchmetrics is missing, or there are no pairs of one of both kinds.
    """
    try:
        from torchmetrics.functional import classification
    except ImportError:
        raise ConfigError("verification needs torchmetrics: pip install torchmetrics") from None
    if same.all() or not same.any():
        raise ConfigError("verification needs pairs of one person and of different ones")
    scores, target = torch.from_numpy((cosines.clip(-1, 1) + 1) / 2), torch.from_numpy(same.astype(int))
    fpr, tpr, _ = classification.binary_roc(scores, target, thresholds=THRESHOLDS)
    precision, recall, _ = classification.binary_precision_recall_curve(scores, target, thresholds=THRESHOLDS)
    precision = precision.nan_to_num(1.0)  # where nothing is accepted, nothing is accepted wrongly
    f1 = (2 * precision * recall / (precision + recall).clamp(min=1e-12))[:-1]  # the last is no threshold's
    grid = np.linspace(-1, 1, THRESHOLDS)
    hits = _fold_accuracy(cosines, same, folds, grid)
    distances = np.sqrt(np.maximum(2 - 2 * cosines, 0))
    edges = np.linspace(-1, 1, 41)
    return {
        "pairs": {"same": int(same.sum()), "different": int((~same).sum())},
        "accuracy": {"mean": float(np.mean(hits)), "std": float(np.std(hits)), "folds": len(hits)},
        "auc": float(classification.binary_auroc(scores, target)),
        "average_precision": float(classification.binary_average_precision(scores, target)),
        "best_f1": {"value": float(f1.max()), "threshold": float(grid[int(f1.argmax())])},
        "distance": {"same": float(distances[same].mean()), "different": float(distances[~same].mean())},
        "roc": {"false_positives": _rounded(fpr), "true_positives": _rounded(tpr)},
        "precision_recall": {"precision": _rounded(precision), "recall": _rounded(recall)},
        "f1": {"threshold": _rounded(grid), "value": _rounded(f1)},
        "histogram": {
            "edges": _rounded(edges),
            "same": np.histogram(cosines[same], edges)[0].tolist(),
            "different": np.histogram(cosines[~same], edges)[0].tolist(),
        },
    }


def _fold_accuracy(cosines: np.ndarray, same: np.ndarray, folds: np.ndarray, grid: np.ndarray) -> list[float]:
    """Judge each fold at the threshold that is best on the other ones (LFW's protocol)."""
    accepted = cosines[:, None] >= grid

    def accuracy(where: np.ndarray) -> np.ndarray:
        kinds = [accepted[where & same], ~accepted[where & ~same]]
        return np.mean([kind.mean(0) for kind in kinds if len(kind)], axis=0)

    found = np.unique(folds)
    if len(found) < 2:
        return [float(accuracy(np.ones_like(same)).max())]
    return [float(accuracy(folds == f)[accuracy(folds != f).argmax()]) for f in found]


def _rounded(values: torch.Tensor | np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]


def summary(conditions: Mapping[str, Measured]) -> list[list[str]]:
    """Write a table's cells, the header first: a row per condition."""
    rows = [["", "accuracy", "AUC", "AP", "best F1", "at", "distance: same", "different"]]
    for name, one in conditions.items():
        accuracy, f1, distance = one["accuracy"], one["best_f1"], one["distance"]
        numbers = (one["auc"], one["average_precision"], f1["value"], f1["threshold"], *distance.values())
        rows.append([name, f"{accuracy['mean']:.3f} ± {accuracy['std']:.3f}", *(f"{v:.3f}" for v in numbers)])
    return rows


def draw(conditions: Mapping[str, Measured], target: Path) -> None:
    """Draw ROC, precision-recall, F1 by threshold and each condition's histogram into one PNG.

    Raises:
        OSDFaceError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OSDFaceError("the plots need matplotlib: pip install matplotlib; all else is written") from None
    rows = 1 + -(-len(conditions) // 3)
    figure = Figure(figsize=(15, 4 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    panels: Sequence[tuple[str, str, str]] = (
        ("roc", "false_positives", "true_positives"),
        ("precision_recall", "recall", "precision"),
        ("f1", "threshold", "value"),
    )
    for axis, (panel, across, up) in zip(axes, panels, strict=False):
        for name, one in conditions.items():
            axis.plot(one[panel][across], one[panel][up], label=name)
        axis.set(title=panel, xlabel=across.replace("_", " "), ylabel=up.replace("_", " "))
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    for axis in axes[3 + len(conditions) :]:
        axis.axis("off")
    for axis, (name, one) in zip(axes[3:], conditions.items(), strict=False):
        for kind in ("same", "different"):
            counts = one["histogram"][kind]
            axis.stairs(
                np.array(counts) / sum(counts), one["histogram"]["edges"], fill=True, alpha=0.5, label=kind
            )
        axis.set(title=name, xlabel="cosine", ylabel="share of pairs")
        axis.legend(fontsize=8)
    with writing(target, OSDFaceError) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
