"""MUSIQ, CLIP-IQA and MANIQA through pyiqa, where the user has installed it.

pyiqa's licence (PolyForm Noncommercial 1.0.0) keeps it out of this project's dependencies; it fetches its
own weights.
"""

import importlib

import torch
from torch import Tensor

from osdface_core.errors import CheckpointError

from .base import Column

NAMES = {"musiq": "MUSIQ (KonIQ)", "clipiqa": "CLIP-IQA", "maniqa": "MANIQA (KonIQ)"}


class PyiqaScore:
    """One no-reference score of pyiqa with its default settings; higher is better."""

    needs_reference = False

    def __init__(self, name: str, device: torch.device) -> None:
        try:
            pyiqa = importlib.import_module("pyiqa")
        except ImportError as error:
            raise CheckpointError(
                "pyiqa is not installed: pip install pyiqa (its licence is PolyForm Noncommercial)"
            ) from error
        try:
            self.net = pyiqa.create_metric(name, device=device)
        except Exception as error:  # pyiqa downloads weights here and fails in as many ways as a network does
            reason = str(error).strip().splitlines()
            raise CheckpointError(
                f"pyiqa cannot make {name}: {(reason or [type(error).__name__])[0][:200]}"
            ) from error
        version = getattr(pyiqa, "__version__", "unknown version")
        self.columns = (Column(name, "higher", f"{NAMES[name]}, pyiqa {version} defaults"),)

    def features(self, images: Tensor) -> Tensor:
        """Compute (B,) scores."""
        with torch.no_grad():
            return self.net(images).reshape(len(images)).cpu()

    def compare(self, image: Tensor, reference: object) -> dict[str, Tensor]:
        return {self.columns[0].name: image}
