"""What the C library does with memory that a program frees."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
KEPT = 2**30
"""[bytes] of freed memory that the process holds on to."""


def keep_freed_memory() -> None:
    """Let a process of our own reuse the memory of large tensors; with another C library than glibc nothing.

    By default glibc maps each of them anew and unmaps it when it is freed, and the kernel clears every page
    of the next: a fifth of the time of a face on a CPU (`python -m benchmarks.allocator`). A process that
    somebody else started, as ComfyUI's, is not ours to set up.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_ARENA_MAX, 1)  # or threads allocate from regions of their own, of 64 MB at most
            mallopt(M_TRIM_THRESHOLD, KEPT)
