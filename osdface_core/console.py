"""What is printed: telling must never stop the work.

A console that lacks a character gets its escape, and one that went away is no reason to leave a folder half
done.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import TextIO


def use_escapes() -> None:
    """Make both standard streams escape what they cannot show, for what others print (`--help`, logs)."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Escape line ends and what a terminal obeys: names of files may hold any character."""
    return re.sub("[\x00-\x08\x0a-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print lines at once, past any progress bar; never fail.

    Args:
        text: without its last line end; other control characters are escaped.
        stream: standard output if None. Where nobody reads it any more, it is silent from then on.
    """
    from tqdm import tqdm

    stream = sys.stdout if stream is None else stream
    if stream is None:  # started without a console, as by pythonw
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = "\n".join(map(printable, text.split("\n")))
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        with tqdm.external_write_mode(stream):
            stream.write(shown + "\n")
            stream.flush()  # whoever reads the pipe sees each line when it is done
    except (OSError, ValueError):
        _silence(stream)


def complain(text: str) -> None:
    """Print lines on standard error; see `say`."""
    if sys.stderr is not None:
        say(text, sys.stderr)


def _silence(stream: TextIO) -> None:
    """Send the rest to nowhere: what is left in the stream's buffer would fail once more at the exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
