"""Turn batches of images into rows of a report, and whole sets into FID and KID."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import MetricCollection
from .scores import Report, Row
from .thumbs import thumbnail

SIDES = ("restored", "input")


@dataclass
class RestoredBatch:
    """Restored images (B,3,H,W) of one profile, and the baseline that they are compared with."""

    restored: Tensor
    baseline: Tensor | None = None
    profile: str = ""


class Collector:
    """Scores batches into `report`; keeps thumbnails and set features on the way.

    Args:
        groups: file stem -> column -> value, from a manifest.
        thumbs: keep JPEG copies for the gallery.
    """

    def __init__(
        self,
        metrics: MetricCollection,
        report: Report,
        device: torch.device,
        groups: dict[str, dict[str, str]],
        thumbs: bool,
    ) -> None:
        self.metrics = metrics
        self.report = report
        self.device = device
        self.groups = groups
        self.thumbs = thumbs
        self._features: dict[tuple[str, str], list[Tensor]] = {}

    def add(self, names: list[str], reference: Tensor | None, variants: list[RestoredBatch]) -> None:
        """Score a batch; the reference (B,3,H,W) goes through each network once for all variants."""
        reference = None if reference is None else reference.to(self.device)
        candidates: dict[tuple[str, str], Tensor] = {}
        for variant in variants:
            candidates[variant.profile, "restored"] = variant.restored.to(self.device)
            if variant.baseline is not None:
                candidates[variant.profile, "input"] = variant.baseline.to(self.device)
        scores = self.metrics.score(reference, candidates)
        self._keep_features(reference, candidates)
        for variant in variants:
            sides = {side: scores.get((variant.profile, side), {}) for side in SIDES}
            self.report.rows += [
                self._row(i, name, variant, sides, reference) for i, name in enumerate(names)
            ]

    def _row(
        self,
        i: int,
        name: str,
        variant: RestoredBatch,
        sides: dict[str, dict[str, list[float]]],
        reference: Tensor | None,
    ) -> Row:
        restored, before = ({key: values[i] for key, values in sides[side].items()} for side in SIDES)
        pictures = {"input": variant.baseline, "restored": variant.restored, "reference": reference}
        thumbs = {side: thumbnail(images[i]) for side, images in pictures.items() if images is not None}
        return Row(
            name, variant.profile, restored, before, self.groups.get(name, {}), thumbs if self.thumbs else {}
        )

    def _keep_features(self, reference: Tensor | None, candidates: dict[tuple[str, str], Tensor]) -> None:
        if self.metrics.sets is None:
            return
        every = dict(candidates) if reference is None else {**candidates, ("", "reference"): reference}
        with torch.no_grad():
            for key, images in every.items():
                self._features.setdefault(key, []).append(self.metrics.sets.features(images))

    def finish(self) -> Report:
        """Compute the metrics over whole sets; call once after the last batch."""
        joined = {key: torch.cat(parts) for key, parts in self._features.items()}
        reference = joined.pop(("", "reference"), None)
        for (profile, side), features in joined.items():
            if self.metrics.sets is not None:
                for name, value in self.metrics.sets.compute(features, reference).items():
                    self.report.sets.setdefault(profile, {}).setdefault(name, {})[side] = value
        return self.report
