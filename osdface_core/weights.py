"""Third-party weight files: found on disk, read without executing pickles, named when they are missing.

Nothing here downloads. A file that is not there ends in one line that says which file and where it comes
from.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .file_kinds import kind_of_file
from .pickles import read_pickle, tensors_by_name

TAESD_SOURCE = "https://github.com/madebyollin/taesd (MIT)"


def find_weights(weights: str | Path | None, filename: str, what: str, source: str) -> Path:
    """Locate a weight file: the given file, `filename` in the given folder, or in torch's download cache.

    Args:
        weights: a file, a folder that holds `filename`, or None (or "") for torch's own cache (no download).
        filename: the file's usual name.
        what: the network in words, for the error message.
        source: where a user gets the file (project and address), for the error message.
    Raises:
        CheckpointError: if there is no such file.
    """
    if not weights:
        path = Path(torch.hub.get_dir()) / "checkpoints" / filename
    else:
        path = Path(weights).expanduser()
        path = path / filename if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(
            f"{what} weights not found at {path}: get {filename} from {source} and give its path"
        )
    return path


def read_state_dict(path: Path, what: str, source: str) -> dict[str, Tensor]:
    """Read a plain state dict (.safetensors, or .pt/.pth with `weights_only=True`) as float32 CPU tensors.

    A dict wrapped in `state_dict` and keys that start with `module.` (DataParallel) are unwrapped.

    Raises:
        CheckpointError: if the file is unreadable or is no dict of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = read_pickle(path)
    except Exception as error:  # safetensors raises several kinds
        if known := kind_of_file(path):
            raise CheckpointError(f"{what} weights at {path}: the file is {known} (from {source})") from error
        raise CheckpointError(
            f"{what} weights at {path} cannot be read ({error}): get them again from {source}"
        ) from error
    try:
        state = tensors_by_name(content, path.stat().st_size)
    except ValueError as error:
        raise CheckpointError(
            f"{what} weights at {path}: the file {error}, expected a dict of tensors; get it from {source}"
        ) from error
    return {
        key.removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in state.items()
    }


Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shapes of tensors by their names."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def misfits(own: Shapes, given: Shapes) -> list[str]:
    """Say in a line each which tensors of `own` are missing, which are too many, and whose shape differs."""
    named = {
        "tensors missing": [name for name in own if name not in given],
        "unexpected tensors": [name for name in given if name not in own],
    }
    problems = [f"{len(names)} {kind}, first {names[0]}" for kind, names in named.items() if names]
    wrong = [name for name in own if name in given and own[name] != given[name]]
    return problems + [f"{name} is {given[name]}, expected {own[name]}" for name in wrong]


def unusable(tensors: Mapping[str, Tensor]) -> list[str]:
    """Say in a line each which tensors are no weights: numbers of other kinds, infinite ones, none."""
    problems = []
    for name, value in tensors.items():
        if not value.is_floating_point():
            problems.append(f"{name} is {value.dtype}, expected floating point")
        elif not value.float().sum().isfinite():
            problems.append(f"{name} holds NaN or infinity")
    return problems


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, what: str, source: str) -> None:
    """Load every tensor by name and shape, or say in one line what does not fit.

    Raises:
        CheckpointError: naming the first missing, unexpected or wrongly shaped tensors.
    """
    if problems := misfits(shapes_of(module.state_dict()), shapes_of(state)):
        raise CheckpointError(
            f"{path} does not hold {what} weights: {', '.join(problems[:3])}; get them from {source}"
        )
    module.load_state_dict(dict(state))
