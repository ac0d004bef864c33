"""The models of a folder, by names that lead nowhere else."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError

MINI = "mini"


def model_names(folder: Path | None) -> list[str]:
    """List `mini`, the checkpoints of a folder, and folders in it with the three released files."""
    if folder is None or not folder.is_dir():
        return [MINI]
    from ..released import is_released_folder

    files = sorted(p.name for p in folder.glob("*.safetensors"))
    return [MINI, *files, *sorted(p.name for p in folder.iterdir() if is_released_folder(p))]


def model_path(name: str, folder: Path | None) -> str | Path:
    """Find the model behind a name of `model_names`.

    Raises:
        CheckpointError: any other name, so that none leads out of the folder.
    """
    if name == MINI:
        return name
    if folder is None or name not in model_names(folder):
        place = f"{folder.name}/{name}" if folder else name
        raise CheckpointError(f"there is no checkpoint at {place}: put it there, or choose another")
    return folder / name
