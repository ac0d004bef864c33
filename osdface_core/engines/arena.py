"""Keep freed memory for the next tensor: else large blocks go back to Linux and are cleared page by page.

glibc maps every block above 32 MiB anew; a feature map of 512 x 512 x 128 float32 is four times that, and
touching its pages for the first time takes longer than most operations on it. (Large pages would be the
other cure; where memory is fragmented the kernel spent more on finding them than they saved.)
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt(3)
USUAL_TRIM, USUAL_MMAP = 128 * 1024, 32 * 1024 * 1024
KEPT = 2**31 - 1
KEPT_OF_HALF = 96 * 1024 * 1024  # the largest maps go back at once: kept, they leave holes
SMALL = 64 * 1024

_depth = 0


@cache
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@contextmanager
def kept_memory(largest: int = KEPT) -> Iterator[None]:
    """Inside, freed blocks below that size are used again, and kept for the next time. Nothing off glibc.

    What is allocated outside goes back as ever when it is freed.
    """
    global _depth
    library = _glibc()
    if library is None:
        yield
        return
    _depth += 1
    if _depth == 1:
        library.mallopt(MMAP_THRESHOLD, largest)
        library.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            library.mallopt(MMAP_THRESHOLD, USUAL_MMAP)


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Inside, blocks go back when they are freed: for work that replaces a model's weights one by one."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, USUAL_MMAP)
        give_back()


def give_back() -> None:
    """End the keeping: what is free goes back to the system. Nothing off glibc."""
    library = _glibc()
    if library is not None:
        library.mallopt(TRIM_THRESHOLD, USUAL_TRIM)
        library.malloc_trim(0)
