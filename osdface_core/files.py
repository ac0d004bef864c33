"""Write a file whole or not at all."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import OSDFaceError


def shorten(name: str, limit: int) -> str:
    """Cut a file name to `limit` bytes, between characters: disks count bytes (255 on most), not characters.

    Bytes that are no UTF-8, which Python keeps as surrogates, become "\ufffd".
    """
    return re.sub("[\ud800-\udfff]", "\ufffd", name).encode()[:limit].decode("utf-8", "ignore")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block ends without an error.

    A killed process or a full disk leaves the old file as it was.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: some writers choose the format by it. Long names would grow beyond what disks allow.
    writer = f"{os.getpid()}{threading.get_ident()}"
    temporary = path.with_name(f".{shorten(path.stem, 60)}.{writer}.partial{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:  # safetensors makes files that only their owner can read
            with suppress(OSError):
                temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as `replacing` does; file names in it that are no UTF-8 are escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8", "backslashreplace")


@contextmanager
def writing(path: str | Path, failure: type[OSDFaceError]) -> Iterator[Path]:
    """Yield a temporary path as `replacing` does.

    Raises:
        OSDFaceError: of the kind `failure`, one line, where the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise failure(f"cannot write {path}: {error}; nothing was replaced") from error
