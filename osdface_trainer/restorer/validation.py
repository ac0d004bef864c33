"""Scores on faces that training never sees, degraded mildly to severely with fixed seeds."""

from collections.abc import Callable

import torch
from torch import Tensor

from osdface_core.models.identity import similarity

from ..data.degrade import degrade
from ..recipe.restorer import RestorerTraining
from ..seeds import mix
from ..stage import FaceBatch, to_signed, to_unit
from .losses import Networks

_STREAM = 0x4011


class Validation:
    """Scores by profile, of the restored faces and of the degraded ones they came from.

    Args:
        cfg: `[restorer.validation]`.
        networks: loaded here already, so that a missing file shows before the first step.
    """

    def __init__(self, cfg: RestorerTraining, networks: Networks) -> None:
        self.cfg = cfg.validation
        self._perceptual = networks.perceptual() if "perceptual" in self.cfg.metrics else None
        self._identity = networks.identity() if "identity" in self.cfg.metrics else None

    @torch.no_grad()
    def __call__(self, batch: FaceBatch, restore: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Score: `profile/metric` (restored), `profile/metric_lq` (degraded), `metric` (restored, all).

        Args:
            batch: its clean faces and their index count.
            restore: (B, 3, H, W) unit → restored, signed.
        """
        scores: dict[str, Tensor] = {}
        for number, profile in enumerate(self.cfg.profiles):
            seeds = [mix(_STREAM, number, index) for index in batch.index.tolist()]
            lq = degrade(batch.hq, profile, seeds)
            restored = to_unit(restore(lq))
            for suffix, faces in (("", restored), ("_lq", lq)):
                values = self._score(faces, batch.hq).items()
                scores |= {f"{profile}/{name}{suffix}": value for name, value in values}
        for metric in self.cfg.metrics:
            values = [scores[f"{profile}/{metric}"] for profile in self.cfg.profiles]
            scores[metric] = torch.stack(values).mean()
        return scores

    def _score(self, unit: Tensor, hq: Tensor) -> dict[str, Tensor]:
        """Average over the batch: PSNR [dB], perceptual distance, identity cosine."""
        scores = {}
        if "psnr" in self.cfg.metrics:
            error = (unit - hq).square().mean((1, 2, 3)).clamp(min=1e-10)
            scores["psnr"] = (-10 * error.log10()).mean()
        if self._perceptual is not None:
            scores["perceptual"] = self._perceptual(to_signed(unit), to_signed(hq))
        if self._identity is not None:
            scores["identity"] = similarity(self._identity, unit, hq).mean()
        return scores
