"""Memory: allocated bytes on CUDA, resident bytes of the process elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from osdface_core.pipeline import FacePipeline

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def of_one_face(pipeline: FacePipeline, side: int, runs: int) -> list[int]:
    """Take the peak before the first face and after each [bytes]: no baseline, no second copy of weights."""
    from .models import random_faces

    peaks = [peak_bytes(pipeline.device)]
    for _ in range(runs):
        pipeline.restore(random_faces(1, side, pipeline.device))
        peaks.append(peak_bytes(pipeline.device))
    return peaks


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
    """Read the highest use since `reset_peak` [bytes]; on the CPU with everything else in the process."""
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


def allocated_bytes(device: torch.device) -> int:
    """Count what lies on a CUDA device; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def resident_bytes() -> int:
    """Read what the process holds now; off Linux the most it ever held."""
    if STATUS.exists():
        return _field("VmRSS")
    return peak_bytes(torch.device("cpu"))


def _field(name: str) -> int:
    line = next((s for s in STATUS.read_text().splitlines() if s.startswith(name)), f"{name}: 0 kB")
    return int(line.split()[1]) * 1024
