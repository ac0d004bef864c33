"""Stop within a face: a check before every layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def checked(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each layer that this thread runs inside; it stops the work by raising."""
    mine = threading.get_ident()

    def before(module: torch.nn.Module, arguments: Any) -> None:
        if not torch.compiler.is_compiling() and threading.get_ident() == mine:
            check()

    handle = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
