"""What an engine is: a name and a way to make a backbone faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..choices import EngineName, Posterior
from ..models.backbone import Backbone, LatentCodec


@dataclass(frozen=True)
class Engine:
    """A way to run a backbone.

    Attributes:
        name: as in the table of options.
        overlaps: whether reading, detecting and pasting other photos beside it saves time.
        prepare: returns a backbone that computes the same by other means. The one it was given stays as it is
            (modules, classes, attributes, weights), so whoever wants the engine undone uses that one again.
    """

    name: EngineName
    overlaps: bool
    prepare: Callable[[Backbone], Backbone]


@dataclass(frozen=True)
class WrappedCodec:
    """A codec whose deterministic work is done by other callables; a sampled posterior is not."""

    plain: LatentCodec
    encoded: Callable[[Tensor], Tensor]
    decoded: Callable[[Tensor, Tensor | None, float], Tensor]

    def encode(
        self, signed: Tensor, posterior: Posterior = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        """See `LatentCodec`."""
        if posterior == "mode":
            return self.encoded(signed)
        return self.plain.encode(signed, posterior, generator)

    def decode(self, latent: Tensor, guide: Tensor | None = None, fidelity: float = 1.0) -> Tensor:
        """See `LatentCodec`."""
        return self.decoded(latent, guide, fidelity)


def wrapped(backbone: Backbone, wrap: Callable[[Any], Any]) -> Backbone:
    """Return `backbone` with `wrap` around encoding, predicting and decoding."""
    codec = backbone.codec
    return Backbone(WrappedCodec(codec, wrap(codec.encode), wrap(codec.decode)), wrap(backbone.predictor))
