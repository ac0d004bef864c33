"""Where and in which precision to run, how many faces fit at once, and whether an error was about memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .choices import Dtype, check_choice
from .config import OSDFaceConfig
from .errors import ConfigError, OptionError

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Resolve a device's name; `auto` is CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: the named device does not exist here.
    """
    if str(name) != "auto":
        try:
            device = torch.device(name)
            if device.type not in ("cpu", "cuda"):
                torch.zeros(1, device=device).item()  # fails where the machine has none, and for meta
        except (RuntimeError, AssertionError, ImportError) as error:
            known = "auto, cpu, cuda, cuda:1 or mps, as far as this machine has it"
            raise OptionError("device", str(name), known) from error
        found = torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= found:
            raise ConfigError(f"no device {name} here ({found} CUDA devices); use `device` cpu")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_dtype(name: Dtype | torch.dtype, device: torch.device) -> torch.dtype:
    """Resolve a precision's name.

    `auto` is bfloat16 where the hardware multiplies it faster (recent CUDA, some CPUs), float16 on older
    CUDA, float32 elsewhere.

    Raises:
        OptionError: an unknown name.
    """
    if isinstance(name, torch.dtype):
        return name
    if name != "auto":
        check_choice("dtype", name, Dtype)
        return TORCH_DTYPES[name]
    if device.type == "cuda":
        # Compute capability 8.0 (Ampere) brought bfloat16; older PyTorch counts emulation as support.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_multiplies_bf16() else torch.float32


@cache
def cpu_multiplies_bf16() -> bool:
    """Return whether products and convolutions take clearly less time in bfloat16.

    Timed once per process, in a tenth of a second (one second where bfloat16 is emulated), because no flag
    tells: with AVX512-BF16 they took half of float32's time on one CPU and twice its time on another.
    """
    with torch.inference_mode():
        share = _bf16_share((384, 384), lambda x: x @ x)
        return share < 1.6 and share + _bf16_share((1, 64, 64, 64), _convolve) < 1.6


def _convolve(x: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(x, x.new_ones(64, 64, 3, 3), padding=1)


def _bf16_share(shape: tuple[int, ...], work: Callable[[Tensor], Tensor]) -> float:
    """Time of `work` in bfloat16 by its time in float32: the best of twenty each, or of half a second's."""
    inputs = [torch.ones(shape, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    seconds, begin = [float("inf")] * len(inputs), time.perf_counter()
    for _ in range(20):
        for i, x in enumerate(inputs):
            start = time.perf_counter()
            work(x)
            seconds[i] = min(seconds[i], time.perf_counter() - start)
        if time.perf_counter() - begin > 0.5:
            break
    return seconds[1] / seconds[0]


GIB = 1024**3
# Peak activations per 512-px face at float32 [bytes], dominated by the codec's decoder at full size.
FACE_BYTES = {"kl": int(2.0 * GIB), "tiny": int(0.45 * GIB)}
MOST = {"cuda": 16, "cpu": 1}  # a CPU gains nothing from a second face, and doubles the memory


def faces_at_once(
    device: torch.device, config: OSDFaceConfig, dtype: torch.dtype, free: int | None = None
) -> int:
    """Choose a batch size that leaves half of the free memory alone; at least 1.

    Args:
        free: memory that may be used [bytes], where somebody else keeps the books.
    """
    per_face = FACE_BYTES[config.codec.kind] * dtype.itemsize // 4
    usable = (free_bytes(device) if free is None else free) // 2
    return max(1, min(MOST.get(device.type, 4), usable // per_face))


def free_bytes(device: torch.device) -> int:
    """Free memory of a device [bytes]; 4 GiB where it cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out: a class of its own on CUDA, only a message on the CPU and MPS."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
