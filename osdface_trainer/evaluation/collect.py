"""Turn batches of images into rows of a report, and whole sets into FID and KID."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from osdface_core.devices import pick_device
from osdface_core.errors import ConfigError

from ..metrics import WeightFinder, load_metrics
from ..metrics.distribution import write_moments
from .gallery import thumbnail
from .intervals import read_groups
from .scores import Report, Row

Candidates = dict[tuple[str, str], Tensor]
"""(profile, "restored" or "input") -> (B,3,H,W) float in [0,1]; "input" is the baseline."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How to measure, in either way of evaluating.

    Attributes:
        metrics: names from `osdface_trainer.metrics.METRICS`; None measures all that can be.
        weights: folder with network weights of the metrics; see `WeightFinder` for where else they are
            sought.
        fid_stats: stored statistics of a set (e.g. FFHQ) for a further FID.
        write_fid_stats: where those of the restored images go.
        manifest, group_by: a CSV with a `file` column, and its columns by which means are reported apart.
        seed: of the bootstrap, of KID's subsets and of degradations.
        thumbs: keep small copies of the images for the gallery.
    """

    metrics: tuple[str, ...] | None = None
    weights: Path | None = None
    fid_stats: Path | None = None
    write_fid_stats: Path | None = None
    manifest: Path | None = None
    group_by: tuple[str, ...] = ()
    device: str = "auto"
    batch_size: int = 4
    limit: int | None = None
    seed: int = 0
    thumbs: bool = True
    progress: bool = False


class Collector:
    """Scores batches into `report`; keeps thumbnails and set features on the way.

    Raises:
        ConfigError: an option is wrong.
    """

    def __init__(self, options: EvaluationOptions) -> None:
        if options.batch_size < 1 or (options.limit is not None and options.limit < 1):
            raise ConfigError(
                f"batch size {options.batch_size} and limit {options.limit}: both must be at least 1"
            )
        if options.group_by and not options.manifest:
            raise ConfigError("--group-by needs --manifest CSV, a table with a column 'file'")
        self.groups = read_groups(options.manifest, options.group_by) if options.manifest else {}
        self.device = pick_device(options.device)
        finder = WeightFinder(options.weights)
        self.metrics = load_metrics(
            options.metrics, finder, self.device, fid_stats=options.fid_stats, seed=options.seed
        )
        sets = self.metrics.sets
        self.report = Report(
            self.metrics.columns, sets.columns if sets else (), missing=self.metrics.missing,
            settings={"seed": options.seed, "device": str(self.device), "torch": torch.__version__},
        )  # fmt: skip
        if sets:
            self.report.settings["fid_mode"] = sets.mode
        if options.write_fid_stats and not sets:
            why = self.metrics.missing.get("fid", "it is not among --metrics")
            raise ConfigError(f"--write-fid-stats needs the metric fid: {why}")
        self.thumbs, self.stats = options.thumbs, options.write_fid_stats
        self._features: dict[tuple[str, str], list[Tensor]] = {}

    def add(self, names: list[str], reference: Tensor | None, candidates: Candidates) -> None:
        """Score a batch; the reference (B,3,H,W) goes through each network once for all candidates."""
        reference = None if reference is None else reference.to(self.device)
        candidates = {key: images.to(self.device) for key, images in candidates.items()}
        scores = self.metrics.score(reference, candidates)
        self._keep_features(reference, candidates)
        for profile in dict.fromkeys(profile for profile, _ in candidates):
            pictures = {side: candidates.get((profile, side)) for side in ("input", "restored")}
            pictures["reference"] = reference
            for i, name in enumerate(names):
                restored, before = (
                    {column: values[i] for column, values in scores.get((profile, side), {}).items()}
                    for side in ("restored", "input")
                )
                row = Row(name, profile, restored, before, self.groups.get(name, {}))
                if self.thumbs:
                    row.thumbs = {side: thumbnail(of[i]) for side, of in pictures.items() if of is not None}
                self.report.rows.append(row)

    def _keep_features(self, reference: Tensor | None, candidates: Candidates) -> None:
        if self.metrics.sets is None:
            return
        every = candidates if reference is None else {**candidates, ("", "reference"): reference}
        with torch.no_grad():
            for key, images in every.items():
                self._features.setdefault(key, []).append(self.metrics.sets.features(images))

    def finish(self) -> Report:
        """Compute the metrics over whole sets; call once after the last batch."""
        joined = {key: torch.cat(parts) for key, parts in self._features.items()}
        reference = joined.pop(("", "reference"), None)
        if self.stats and ("", "restored") in joined:
            write_moments(self.stats, joined["", "restored"])
        for (profile, side), features in joined.items():
            if self.metrics.sets is not None:
                for name, value in self.metrics.sets.compute(features, reference).items():
                    self.report.sets.setdefault(profile, {}).setdefault(name, {})[side] = value
        return self.report
