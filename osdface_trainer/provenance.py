"""Where a checkpoint comes from: written into its header, readable with `osdface info`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .recipe.config import Recipe, StageName, stage_tables


def provenance(
    recipe: Recipe, stage: StageName, step: int, data: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect stage, steps, seed, recipe and data hashes, and what the stage itself tells.

    Folders of the machine stay out: of a path only its last part is kept.

    Args:
        data: hash of the training faces.
        facts: from `TrainingStage.export`.
    """
    tables = _public(stage_tables(recipe, stage))
    digest = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
    return {
        "stage": stage,
        "step": step,
        "steps": sum(recipe.phases(stage).values()),
        "seed": recipe.run.seed,
        "batch_size": recipe.batch_size(stage),
        "data": data,
        "recipe_hash": digest,
        "recipe": tables,
        **_public(dict(facts)),
    }


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and ("/" in value or "\\" in value) else value
