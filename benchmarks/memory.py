"""Memory of a pass: allocated bytes on CUDA, resident bytes of the process elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Start counting anew. Off Linux the CPU's peak cannot be reset and covers the whole run."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        try:
            CLEAR.write_text("5")  # proc(5): resets VmHWM
        except OSError:
            return


def peak_bytes(device: torch.device) -> int:
    """Highest use since `reset_peak` [bytes]; on the CPU with everything else that the process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        return _field("VmHWM")
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def resident_bytes() -> int:
    """What the process holds now; off Linux the most it ever held."""
    if STATUS.exists():
        return _field("VmRSS")
    return peak_bytes(torch.device("cpu"))


def _field(name: str) -> int:
    line = next((s for s in STATUS.read_text().splitlines() if s.startswith(name)), f"{name}: 0 kB")
    return int(line.split()[1]) * 1024
