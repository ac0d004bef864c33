"""Where and in which precision to run, how many faces fit at once, and whether an error was about memory."""

from __future__ import annotations

import os

import torch

from .config import OSDFaceConfig
from .errors import OSDFaceError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`: CUDA, then Apple's MPS, then the CPU.

    Raises:
        OSDFaceError: the named device does not exist here.
    """
    if str(name) != "auto":
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise OSDFaceError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1 or mps") from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise OSDFaceError(
                f"no device {name} here ({torch.cuda.device_count()} CUDA devices); use --device cpu"
            )
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the hardware multiplies it (recent CUDA, CPUs with AMX), float16 on older CUDA,
    float32 elsewhere.

    Raises:
        OSDFaceError: an unknown name.
    """
    if isinstance(name, torch.dtype):
        return name
    if name != "auto":
        if name not in DTYPES:
            raise OSDFaceError(f"unknown dtype {name!r}; use auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cuda":
        # Compute capability 8.0 (Ampere) brought bfloat16; older PyTorch counts emulation as support.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 faster than float32: with AMX (PyTorch's own probe; absent: no).

    AVX512-BF16 alone does not count: the products measured with it ran at half of float32's speed.
    """
    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()


GIB = 1024**3
# Peak activations per 512-px face at float32 [bytes], dominated by the codec's decoder at full size.
FACE_BYTES = {"kl": int(2.0 * GIB), "tiny": int(0.45 * GIB)}
MOST = {"cuda": 16, "cpu": 4}


def faces_at_once(device: torch.device, config: OSDFaceConfig, dtype: torch.dtype) -> int:
    """A batch size that leaves half of the free memory alone; at least 1."""
    per_face = FACE_BYTES[config.codec.kind] * dtype.itemsize // 4
    return max(1, min(MOST.get(device.type, 4), free_bytes(device) // 2 // per_face))


def free_bytes(device: torch.device) -> int:
    """Free memory of a device [bytes]; 4 GiB where it cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * GIB


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has one class for CUDA; the CPU and MPS allocators only say so in the message."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
