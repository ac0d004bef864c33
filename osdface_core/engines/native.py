"""The engine `native`: `fast` with its convolutions in C++, compiled once per machine."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..files import replacing
from .packed import PackedConv
from .winograd import After, Before, WinogradConv, Workspace

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
CHANNELS = 32  # widths must be multiples of it
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp")
CELLS_AT_ONCE = 256  # pixels whose sums are taken in float32: few enough for its digits and the cache
MANY = 4096  # pixels for which transforming half-precision weights at every pass pays
INSTEAD = "or use --engine fast"


class _Convolution(ctypes.Structure):
    """`struct Convolution` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "kernel", "bias", "residual", "scale", "shift", "out")),
        *((name, ctypes.c_int64) for name in ("height", "width", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("silu", "relu", "twice")),
    )


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
    loaded.osdface_places.restype = loaded.osdface_room.restype = ctypes.c_int64
    return loaded


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osdface" / "native"


def _key() -> str:
    """Changes with whatever makes the result another one: source, options, PyTorch, compiler, CPU."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((s for s in lines if s.startswith(("flags", "Features"))), platform.processor())
    parts = (SOURCE.read_text(), str(FLAGS), torch.__version__, str(_compiler()), platform.machine(), flags)
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
    command = [compiler, *FLAGS, "-isystem", str(torch_folder / "include"), str(SOURCE), "-o", str(target)]
    command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        wrong = [s for s in done.stderr.splitlines() if "error" in s] or [f"exit status {done.returncode}"]
        raise ConfigError(f"--engine native: {compiler} fails ({wrong[0].strip()}); set CXX, {INSTEAD}")


class NativeConv(WinogradConv):
    """Winograd's F(6x6, 3x3): 1.8 products per output pixel and channel pair instead of fast's 2.25."""

    @classmethod
    def stand_in(cls, conv: PackedConv, workspace: Workspace) -> WinogradConv:
        """One of this kind where the layer's widths allow it, else one of `fast`."""
        layer = conv.conv
        whole = layer.in_channels % CHANNELS == 0 and layer.out_channels % CHANNELS == 0
        return (cls if whole else WinogradConv)(conv, workspace)

    def fits(self, height: int, width: int) -> bool:
        return super().fits(height, width) and (height * width >= MANY or not self.saves_memory())

    @staticmethod
    def sums(picture: Tensor) -> Tensor:
        (pixels, channels), cells = picture.shape, CELLS_AT_ONCE
        found = torch.empty(-(-pixels // cells), 2, channels, dtype=torch.float64)
        sizes = (ctypes.c_int64(v) for v in (pixels, channels, cells))
        library().osdface_sums(_at(picture), _at(found), *sizes)
        return found.sum(0)

    def transform(self, weight: Tensor) -> Tensor:
        """(O, C, 3, 3) to the compiled code's own order, float32."""
        outputs, inputs = weight.shape[:2]
        taps = weight.detach().permute(2, 3, 1, 0).contiguous().float()
        count = library().osdface_places() * inputs * outputs
        kernel = self.workspace.get("kernel", count) if self.saves_memory() else torch.empty(count)
        library().osdface_kernel(_at(taps), _at(kernel), ctypes.c_int64(inputs), ctypes.c_int64(outputs))
        return kernel

    def _picture(self, x: Tensor, out: Tensor, kernel: Tensor, before: Before, after: After) -> None:
        (height, width, outputs), inputs = out.shape, x.shape[2]
        # Held by name, so that no copy goes before the call.
        inner = [None if v is None else v.contiguous() for v in (before.scale, before.shift)]
        x, bias = x.contiguous(), after.bias.contiguous()
        pointers = [_at(v) for v in (x, kernel, bias, after.residual, *inner, out)]
        flags = [int(v) for v in (before.silu, after.relu, before.double)]
        call = _Convolution(*pointers, height, width, inputs, outputs, *flags)
        room = self.workspace.get("native", library().osdface_room(ctypes.byref(call)))
        library().osdface_convolve(ctypes.byref(call), _at(room))


def _at(tensor: Tensor | None) -> Any:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
