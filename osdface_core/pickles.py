"""Files of `torch.save`, opened for tensors alone: nothing is executed or unpacks to more than it is."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DAMAGED = "truncated or no PyTorch file"
UNSAFE = "not opened for safety: it holds more than tensors"
PACKED = "not opened for safety: it unpacks to more than its own size"


def read_pickle(path: Path) -> Any:
    """Read plain data and tensors, on the CPU.

    Raises:
        ValueError: what the file is instead, in words that follow "the file is".
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that torch.save does not write
            refuse_packed(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zip each raise their own kinds for damaged files
        if str(error) == PACKED:
            raise
        raise ValueError(UNSAFE if _refused(error, path) else DAMAGED) from error


def refuse_packed(path: Path) -> None:
    """Raise ValueError for a file that unpacks to more than it is, which none of PyTorch's own does."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError(PACKED)


def _refused(error: Exception, path: Path) -> bool:
    """Whether it is a pickle, and one of more than tensors."""
    with path.open("rb") as file:
        return isinstance(error, pickle.UnpicklingError) and file.read(1) in (b"\x80", b"P")  # of a zip: PK


def tensors_by_name(content: Any, size: int) -> dict[str, Any]:
    """Take the tensors of a state dict, out of its wrapper `state_dict` where it has one.

    Args:
        size: of the file [bytes].
    Raises:
        ValueError: what the file holds instead, in words that follow "the file".
    """
    import torch

    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError("holds no tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"holds no tensors by name, but {name!r}: {type(value).__name__}")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError(f"holds no plain numbers under {name}")
    if sum(value.numel() * value.element_size() for value in content.values()) > 2 * size:
        raise ValueError("names more numbers than it holds")  # one number may stand for all of a tensor
    return dict(content)
