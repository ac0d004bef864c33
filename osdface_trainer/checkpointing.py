"""Checkpoints of a run: complete or not there at all, and pruned.

One checkpoint is a folder `step_00001200/` with `state.json` (the tree of the state, and size and hash of the
other file) and `00.safetensors`. It is written under another name and renamed, so a kill never leaves half of
one; a file that was cut off later is found by its hash, and the checkpoint before it is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from osdface_core.errors import CheckpointError

FORMAT = 1
_TENSOR, _PAIRS = "__tensor__", "__pairs__"


def save_state(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 3) -> Path:
    """Write one checkpoint and remove the oldest beyond `keep`.

    Args:
        folder: holds the checkpoints of one stage of one run.
        step: optimiser steps done.
        state: nested dicts and lists of tensors, numbers, text and None.
    Returns: the checkpoint's folder.
    Raises:
        CheckpointError: a tensor holds NaN or infinity, or the disk refuses; nothing is left behind.
    """
    final = folder / f"step_{step:08d}"
    if problem_of(final) is None:
        return final
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "state", tensors)
    _refuse_non_finite(tensors, step)
    partial = folder / f".partial_{step:08d}"
    try:
        _write(partial, {"format": FORMAT, "step": step, "state": tree}, tensors)
        if final.exists():  # damaged, or problem_of would have said it is complete
            shutil.rmtree(final)
        partial.replace(final)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"checkpoint {final} cannot be written: {error}; free some space") from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """List folders of checkpoints, oldest first, damaged ones included."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def latest_state(folder: Path, warn: list[str] | None = None) -> tuple[int, dict[str, Any]] | None:
    """Load step and state of the newest complete checkpoint, tensors on the CPU; None when there is none.

    Args:
        warn: gets one line for every damaged checkpoint that was passed over.
    """
    for path in reversed(list_checkpoints(folder)):
        problem = problem_of(path)
        if problem is None:
            return load_state(path)
        if warn is not None:
            warn.append(f"{path} is damaged ({problem}): using an earlier checkpoint")
    return None


def load_state(path: Path) -> tuple[int, dict[str, Any]]:
    """Read one checkpoint folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if (problem := problem_of(path)) is not None:
        raise CheckpointError(f"checkpoint {path} cannot be used: {problem}")
    index = json.loads((path / "state.json").read_text(encoding="utf-8"))
    pieces: dict[str, Tensor] = {}
    try:
        for name in index["files"]:
            pieces.update(load((path / name).read_bytes()))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return index["step"], _decode(index["state"], pieces)


def problem_of(path: Path) -> str | None:
    """Tell why a checkpoint folder is not complete; None when every file has its size and hash."""
    try:
        index = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if index["format"] > FORMAT:
            return f"format {index['format']} is newer than {FORMAT}: update osdface"
        for name, expected in index["files"].items():
            data = (path / name).read_bytes()
            if len(data) != expected["bytes"]:
                return f"{name} has {len(data)} of {expected['bytes']} bytes"
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                return f"{name} has another content than was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"state.json cannot be read ({error})"
    return None


def remove_partial(folder: Path) -> None:
    """Delete what a killed run was writing."""
    for path in folder.glob(".partial_*"):
        shutil.rmtree(path, ignore_errors=True)


def _refuse_non_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"step {step}: {name} holds NaN or infinity, so no checkpoint was written; "
                "resume from the one before with a lower learning rate"
            )


def _write(folder: Path, index: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name, data = "00.safetensors", save(tensors)
    _write_file(folder / name, data)
    index["files"] = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    _write_file(folder / "state.json", json.dumps(index).encode())


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Turn a state into JSON types; tensors go to `tensors` and leave {"__tensor__": name, "shape": …}."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: path, "shape": list(value.shape)}
    if isinstance(value, Mapping):
        items = {str(k): _encode(v, f"{path}.{k}", tensors) for k, v in value.items()}
        if all(isinstance(k, str) for k in value):
            return items
        return {_PAIRS: [[k, items[str(k)]] for k in value]}  # optimisers number their parameters
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_encode(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot be stored in a checkpoint")


def _decode(value: Any, pieces: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(v, pieces) for v in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return pieces[value[_TENSOR]].reshape(value["shape"])
    if _PAIRS in value:
        return {k: _decode(v, pieces) for k, v in value[_PAIRS]}
    return {k: _decode(v, pieces) for k, v in value.items()}
