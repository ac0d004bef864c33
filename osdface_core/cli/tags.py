"""`osdface restore --tags`: what a photo shows, as the prompt of a model that was trained with text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..models.text import load_text, sidecar_tags

SIDECAR = "sidecar"


def prompts_of(base: str | Path | None, tags: str) -> Callable[[Path], Tensor | None]:
    """Load the base's text encoder, for a model with a text prompt.

    Args:
        tags: what all photos show, or `sidecar`: each photo's is in the text file beside it.
    Returns:
        a photo's prompt (1, 77, D); None where it has no tags: then the model's own text counts.
    Raises:
        ConfigError: the base has no text encoder.
    """
    try:
        encoder = load_text(base or "")
    except CheckpointError as error:
        raise ConfigError(f"--tags: {error}") from error

    def prompt(photo: Path) -> Tensor | None:
        words = sidecar_tags(photo) if tags == SIDECAR else tags
        return encoder([words]) if words else None

    return prompt
