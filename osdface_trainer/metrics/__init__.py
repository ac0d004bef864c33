"""The metrics of `osdface evaluate`, each in its own small file; `load_metrics` loads those that can run
here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from osdface_core.errors import ConfigError, OSDFaceError

from .base import Column, Metric, SetMetric, WeightFinder
from .distribution import InceptionDistances
from .fidelity import ColourShift, HighFrequencyEnergy, Psnr, Ssim
from .identity import ArcFaceDegrees, FaceIdentity
from .landmarks import AwingLandmarks, MtcnnLandmarks
from .niqe import Niqe
from .optional import NAMES as OPTIONAL
from .optional import PyiqaScore
from .perceptual import Dists, FeatureDistance

__all__ = ["METRICS", "Column", "MetricCollection", "WeightFinder", "check_names", "load_metrics"]

Label = TypeVar("Label")
Loader = Callable[[WeightFinder, torch.device], Metric]

LOADERS: tuple[tuple[str, Loader], ...] = (
    ("perceptual", FeatureDistance.squeezenet),
    ("lpips_alex", FeatureDistance.lpips_alex),
    ("lpips_vgg", FeatureDistance.lpips_vgg),
    ("dists", Dists.load),
    ("identity", FaceIdentity.load),
    ("deg", ArcFaceDegrees.load),
    ("lmd", AwingLandmarks.load),
    ("lmd_mtcnn5", lambda finder, device: MtcnnLandmarks()),
    ("psnr", lambda finder, device: Psnr()),
    ("ssim", lambda finder, device: Ssim()),
    ("hf_energy", lambda finder, device: HighFrequencyEnergy()),
    ("colour_shift", lambda finder, device: ColourShift()),
    ("niqe", lambda finder, device: Niqe.load(finder)),
    *((name, lambda finder, device, name=name: PyiqaScore(name, device)) for name in OPTIONAL),
)
METRICS = (*(name for name, _ in LOADERS), "fid")
"""Names that `--metrics` accepts; "identity" gives cosine and angle, "fid" gives FID and KID."""


@dataclass
class MetricCollection:
    """The metrics that run, and why the others do not (metric name -> one line)."""

    metrics: list[Metric] = field(default_factory=list)
    sets: SetMetric | None = None
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
                values = metric.compare(metric.features(images), known)
                scores[label].update({name: value.cpu().double().tolist() for name, value in values.items()})
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
