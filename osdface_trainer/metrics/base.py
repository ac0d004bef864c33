"""What the metrics of `osdface evaluate` share: columns, two steps, and how weights are found."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from osdface_core.errors import CheckpointError
from osdface_core.weights import load_strictly, read_state_dict

Better = Literal["higher", "lower", "one"]
"""Which way a value improves; `one` stands for ratios whose ideal is 1."""


@dataclass(frozen=True)
class Column:
    """One number per image: `name` is its key in reports, `about` its definition in one line.

    `drop_below`: values under it stay in the per-image list but leave the mean (the Deg. convention).
    """

    name: str
    better: Better
    about: str
    unit: str = ""
    digits: int = 3
    drop_below: float | None = None


def unchanged(images: Tensor) -> Tensor:
    """Return the images: the features of metrics that compare pixels."""
    return images


@dataclass(frozen=True)
class Metric:
    """A per-image metric in two steps: a network sees every image once, however often it is compared.

    Attributes:
        compare: features of images and of their references (None where `needs_reference` is False) ->
            (B,), or (columns, B) of several columns; NaN where an image has none.
        features: (B,3,H,W) float in [0,1] -> what is compared.
    """

    columns: tuple[Column, ...]
    compare: Callable[[Any, Any], Tensor]
    features: Callable[[Tensor], Any] = unchanged
    needs_reference: bool = True


@dataclass(frozen=True)
class WeightFile:
    """A file of network weights that the user provides: accepted names, what it is, its source."""

    names: tuple[str, ...]
    what: str
    source: str


@dataclass(frozen=True)
class WeightFinder:
    """Looks weight files up; never downloads.

    Order: `folder` (`--weights DIR`), `$OSDFACE_WEIGHTS`, the user's cache (`$XDG_CACHE_HOME/osdface`),
    torch.hub's checkpoint folder (where torchvision puts what it downloads), the package's assets.
    """

    folder: Path | None = None

    def folders(self) -> list[Path]:
        """List the folders that are searched, in order; those that are absent included."""
        import osdface_core

        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        found = [self.folder] if self.folder else []
        if os.environ.get("OSDFACE_WEIGHTS"):
            found.append(Path(os.environ["OSDFACE_WEIGHTS"]))
        return [
            *found,
            cache / "osdface",
            Path(torch.hub.get_dir()) / "checkpoints",
            *(Path(part) / "assets" for part in osdface_core.__path__),
        ]

    def find(self, wanted: WeightFile) -> Path:
        """Find the first match, folders before names.

        Raises:
            CheckpointError: naming the file, its source and how to hand it over.
        """
        for folder in self.folders():
            for name in wanted.names:
                if (folder / name).is_file():
                    return folder / name
        raise CheckpointError(
            f"{' or '.join(wanted.names)} not found ({wanted.what}, from {wanted.source}): "
            "put it into --weights DIR or $OSDFACE_WEIGHTS"
        )


def load_frozen(module: nn.Module, path: Path, wanted: WeightFile) -> nn.Module:
    """Load `path` into `module` strictly; evaluation mode, no gradients. Raises CheckpointError."""
    load_strictly(module, read_state_dict(path, wanted.what, wanted.source), path, wanted.what, wanted.source)
    return module.eval().requires_grad_(False)
