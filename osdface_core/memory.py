"""How many faces fit at once, and whether an error was about memory."""

from __future__ import annotations

import os

import torch

from .config import OSDFaceConfig

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
