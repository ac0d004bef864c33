"""The metrics of `osdface evaluate`, each in its own small file; `load_metrics` loads those that can run
here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from osdface_core.errors import ConfigError, OSDFaceError

from .base import Column, Metric, WeightFinder
from .colour import DELTA_E
from .distribution import InceptionDistances
from .fidelity import COLOUR_SHIFT, DETAIL, PSNR, SSIM
from .identity import arcface_degrees, face_identity
from .landmarks import MTCNN, awing_landmarks
from .niqe import load_niqe
from .optional import NAMES as OPTIONAL
from .optional import pyiqa_score
from .perceptual import dists, feature_distance

__all__ = ["METRICS", "Column", "Metric", "MetricCollection", "WeightFinder", "check_names", "load_metrics"]

Label = TypeVar("Label")
MetricLoader = Callable[[WeightFinder, torch.device], Metric]

LOADERS: tuple[tuple[str, MetricLoader], ...] = (
    ("perceptual", partial(feature_distance, "perceptual", "squeezenet")),
    ("lpips_alex", partial(feature_distance, "lpips_alex", "alexnet")),
    ("lpips_vgg", partial(feature_distance, "lpips_vgg", "vgg16")),
    ("dists", dists),
    ("identity", face_identity),
    ("deg", arcface_degrees),
    ("lmd", awing_landmarks),
    ("lmd_mtcnn5", lambda finder, device: MTCNN),
    ("psnr", lambda finder, device: PSNR),
    ("ssim", lambda finder, device: SSIM),
    ("hf_energy", lambda finder, device: DETAIL),
    ("colour_shift", lambda finder, device: COLOUR_SHIFT),
    ("delta_e", lambda finder, device: DELTA_E),
    ("niqe", load_niqe),
    *((name, partial(pyiqa_score, name)) for name in OPTIONAL),
)
METRICS = (*(name for name, _ in LOADERS), "fid")
"""Names that `--metrics` accepts; "identity" gives cosine and angle, "fid" gives FID and KID."""


@dataclass
class MetricCollection:
    """The metrics that run, and why the others do not (metric name -> one line)."""

    metrics: list[Metric] = field(default_factory=list)
    sets: InceptionDistances | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[Column, ...]:
        """List the per-image columns, in report order."""
        return tuple(column for metric in self.metrics for column in metric.columns)

    @torch.no_grad()
    def score(
        self, reference: Tensor | None, candidates: dict[Label, Tensor]
    ) -> dict[Label, dict[str, list[float]]]:
        """Compute every column of every candidate; the reference goes through each network once.

        Args:
            reference: (B,3,H,W) float in [0,1], or None.
            candidates: label -> (B,3,H,W), pixel-aligned with the reference.
        Returns:
            label -> column -> B values, NaN where an image has none.
        """
        scores: dict[Label, dict[str, list[float]]] = {label: {} for label in candidates}
        for metric in self.metrics:
            if metric.needs_reference and reference is None:
                continue
            known = metric.features(reference) if metric.needs_reference and reference is not None else None
            for label, images in candidates.items():
                values = torch.atleast_2d(metric.compare(metric.features(images), known)).cpu().double()
                scores[label] |= {
                    column.name: row.tolist() for column, row in zip(metric.columns, values, strict=True)
                }
        return scores


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError for the first name that is no metric."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}")


def load_metrics(
    names: Sequence[str] | None,
    finder: WeightFinder,
    device: torch.device,
    *,
    fid_stats: Path | None = None,
    seed: int = 0,
) -> MetricCollection:
    """Load the metrics in `names` (None: all of them); what cannot be loaded is listed with its reason.

    Raises:
        ConfigError: for a name that is no metric.
    """
    check_names(names or ())
    collection = MetricCollection()
    for name, load in LOADERS:
        if names is None or name in names:
            try:
                collection.metrics.append(load(finder, device))
            except (OSDFaceError, ImportError) as error:
                collection.missing[name] = str(error)
    if names is None or "fid" in names:
        try:
            collection.sets = InceptionDistances.load(finder, device, fid_stats, seed)
        except (OSDFaceError, ImportError) as error:
            collection.missing["fid"] = str(error)
    return collection
