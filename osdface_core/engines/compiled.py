"""The C++ behind the engine `native`: compiled once per machine, called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..files import replacing

log = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("cpp")
MAIN = "native.cpp"
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp")
SIZES = (  # functions that return one
    "osdface_half",
    "osdface_places",
    "osdface_room",
    "osdface_half_places",
    "osdface_half_room",
    "osdface_half_multiply_room",
    "osdface_half_attend_room",
)
INSTEAD = "or use --engine fast"


@cache
def library() -> ctypes.CDLL:
    """The compiled source; at the first call on a machine it is compiled.

    Raises:
        ConfigError: there is no compiler, or it fails.
    """
    path = _folder() / f"{_key()}.so"
    try:
        if not path.exists():
            with replacing(path) as temporary:
                _compile(temporary)
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise ConfigError(f"--engine native: {error}; make {path.parent} writable, {INSTEAD}") from error
    for name in SIZES:
        if hasattr(loaded, name):
            getattr(loaded, name).restype = ctypes.c_int64
    return loaded


def halves() -> bool:
    """Whether this CPU multiplies half precision as such, twice as fast as float32 (AVX512-FP16)."""
    return bool(library().osdface_half())


def at(tensor: Tensor | None) -> Any:
    """Where its numbers lie, as an argument of the library's functions."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def sizes(*values: int) -> Iterator[ctypes.c_int64]:
    """The same for numbers."""
    return (ctypes.c_int64(v) for v in values)


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osdface" / "native"


def _key() -> str:
    """Changes with whatever makes the result another one: source, options, PyTorch, compiler, CPU."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((s for s in lines if s.startswith(("flags", "Features"))), platform.processor())
    parts = (
        *(p.read_text() for p in sorted(SOURCES.iterdir())),
        str(FLAGS),
        torch.__version__,
        str(_compiler()),
        platform.machine(),
        flags,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "c++")


def _compile(target: Path) -> None:
    compiler = _compiler()
    if compiler is None or sys.platform == "win32":
        raise ConfigError(f"--engine native needs the C++ compiler GCC or Clang; install one, {INSTEAD}")
    log.warning("compiling the engine native, once on this machine …")
    torch_folder = Path(torch.__file__).parent
    libraries = torch_folder / "lib"
    command = [
        compiler,
        *FLAGS,
        "-isystem",
        str(torch_folder / "include"),
        str(SOURCES / MAIN),
        "-o",
        str(target),
    ]
    command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        wrong = [s for s in done.stderr.splitlines() if "error" in s] or [f"exit status {done.returncode}"]
        raise ConfigError(f"--engine native: {compiler} fails ({wrong[0].strip()}); set CXX, {INSTEAD}")
