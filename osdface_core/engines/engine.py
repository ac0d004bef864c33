"""What an engine is: a name, a way to make a backbone faster, and the way back."""

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
        prepare: returns a backbone that computes the same by other means. The one it was given keeps all but
            weights that it may lend: until `undo` only the new one may compute.
        undo: gives lent weights back bit by bit; what `prepare` returned may not be used any more.
    """

    name: EngineName
    overlaps: bool
    prepare: Callable[[Backbone], Backbone]
    undo: Callable[[Backbone], None] = lambda prepared: None


@dataclass(frozen=True)
class WrappedCodec:
    """A codec whose deterministic work is done by other callables; a sampled posterior is not."""

    plain: LatentCodec
    encoded: Callable[[Tensor], Tensor]
    decoded: Callable[[Tensor, Tensor | None, float | Tensor], Tensor]

    def encode(
        self, signed: Tensor, posterior: Posterior = "mode", generator: torch.Generator | None = None
    ) -> Tensor:
        """See `LatentCodec`."""
        if posterior == "mode":
            return self.encoded(signed)
        return self.plain.encode(signed, posterior, generator)

    def decode(self, latent: Tensor, guide: Tensor | None = None, fidelity: float | Tensor = 1.0) -> Tensor:
        """See `LatentCodec`."""
        return self.decoded(latent, guide, fidelity)


def wrapped(backbone: Backbone, wrap: Callable[[Any], Any]) -> Backbone:
    """Return `backbone` with `wrap` around encoding, predicting and decoding."""
    codec = backbone.codec
    return Backbone(WrappedCodec(codec, wrap(codec.encode), wrap(codec.decode)), wrap(backbone.predictor))
