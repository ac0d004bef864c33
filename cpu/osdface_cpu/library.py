"""The compiled kernels: the library for this CPU, called through ctypes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
LEVELS = ("sse42", "avx2", "avx512", "avx512fp16")  # the order of osdface_level in cpp/kernels.cpp
OTHER = "generic"  # where the architecture is not x86
SIZES = (  # functions that return one
    "osdface_level",
    "osdface_places",
    "osdface_room",
    "osdface_half_places",
    "osdface_half_room",
    "osdface_half_multiply_room",
    "osdface_half_attend_room",
)


@cache
def level() -> str:
    """Return the widest instruction set that this CPU has and that was built; OSDFACE_CPU names another."""
    if wanted := os.environ.get("OSDFACE_CPU"):
        return wanted
    if not _path(LEVELS[0]).exists():
        return OTHER
    built = [name for name in LEVELS[: load(LEVELS[0]).osdface_level() + 1] if _path(name).exists()]
    return built[-1]


def library() -> ctypes.CDLL:
    """Return the kernels for this CPU."""
    return load(level())


def check() -> None:
    """Load the kernels for this CPU.

    Raises:
        OSError: they were not built.
    """
    library()


@cache
def load(name: str) -> ctypes.CDLL:
    """Return the kernels for one instruction set, which work on PyTorch's threads where it has OpenMP's."""
    loaded = ctypes.CDLL(str(_path(name)))
    for function in SIZES:
        if hasattr(loaded, function):
            getattr(loaded, function).restype = ctypes.c_int64
    loaded.osdface_use_fork(_openmp())
    return loaded


def halves() -> bool:
    """Return whether half precision is multiplied as such, twice as fast as float32 (AVX512-FP16)."""
    return level() == LEVELS[-1]


def _path(name: str) -> Path:
    return FOLDER / f"_{name}.so"


def _openmp() -> ctypes.c_void_p | None:
    """Where GOMP_parallel lies in the OpenMP that PyTorch runs on; None where it is another kind."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not path.exists():
        return None
    found = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
    return None if found is None else ctypes.cast(found, ctypes.c_void_p)


def at(tensor: Tensor | None) -> Any:
    """Return a tensor's data pointer as an argument of the library's functions."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def sizes(*values: int) -> Iterator[ctypes.c_int64]:
    """Return numbers as arguments of the library's functions."""
    return (ctypes.c_int64(v) for v in values)


class Workspace(threading.local):
    """Buffers that one layer after the other uses; they grow as needed. Each thread has its own."""

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}

    def get(self, name: str, count: int) -> Tensor:
        """Return so many uninitialised float32; the same memory for the same name."""
        held = self.parts.get(name)
        if held is None or held.numel() < count:
            held = self.parts[name] = torch.empty(count)
        return held[:count]
