"""MUSIQ, CLIP-IQA and MANIQA through pyiqa, where the user has installed it.

pyiqa's licence (PolyForm Noncommercial 1.0.0) keeps it out of this project's dependencies; it fetches its
own weights.
"""

import importlib

import torch

from osdface_core.errors import CheckpointError

from .base import Column, Metric, WeightFinder

NAMES = {"musiq": "MUSIQ (KonIQ)", "clipiqa": "CLIP-IQA", "maniqa": "MANIQA (KonIQ)"}


def pyiqa_score(name: str, _: WeightFinder, device: torch.device) -> Metric:
    """Load one no-reference score of pyiqa with its default settings; higher is better.

    Raises:
        CheckpointError: pyiqa is not installed, or cannot make the score.
    """
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError as error:
        raise CheckpointError(
            "pyiqa is not installed: pip install pyiqa (its licence is PolyForm Noncommercial)"
        ) from error
    try:
        net = pyiqa.create_metric(name, device=device)
    except Exception as error:  # pyiqa downloads weights here and fails in as many ways as a network does
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"pyiqa cannot make {name}: {reason[0][:200]}") from error
    version = getattr(pyiqa, "__version__", "unknown version")
    return Metric(
        (Column(name, "higher", f"{NAMES[name]}, pyiqa {version} defaults"),),
        lambda scores, _: scores,
        lambda images: net(images).reshape(len(images)).cpu(),
        needs_reference=False,
    )
