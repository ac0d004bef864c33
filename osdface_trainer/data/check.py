"""Look at every picture of a data set before the first step, not hours later when it is drawn."""

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from osdface_core.errors import ConfigError, ImageError
from osdface_core.files import write_text

from .prefetch import prefetch
from .sources import FaceFile, refuse_oblong

Broken = Literal["skip", "stop"]
SHOWN = 5  # names in a message
_DRAFT = 8  # JPEG is decoded at an eighth of its size: all of its data is read, few pixels are computed


def check_face(file: FaceFile) -> str:
    """Read one picture to its end.

    PNG's checksums and JPEG's entropy-coded data are read in full, which finds every truncation; the pixels
    are computed only where a format has nothing cheaper. Pillow does that outside of Python's lock.

    Returns:
        what is wrong with it, "" for nothing.
    """
    try:
        data = file.read()
        with Image.open(io.BytesIO(data)) as picture:
            refuse_oblong(file.name, picture.size)
            if picture.format == "PNG" and _checksums_hold(data):
                return ""
            picture.draft("RGB", (picture.width // _DRAFT, picture.height // _DRAFT))
            picture.load()
    except ImageError as error:
        return str(error)
    except Exception as error:  # Pillow's decoders raise many kinds, DecompressionBombError among them
        return f"{file.name}: no readable image ({str(error) or type(error).__name__})"
    return ""


def _checksums_hold(png: bytes) -> bool:
    """Say whether all chunks are whole; a wrong sum in a comment does not make the pixels unreadable."""
    with Image.open(io.BytesIO(png)) as picture:
        try:
            picture.verify()
        except (OSError, SyntaxError, ValueError):
            return False
    return True


class CheckedFiles:
    """Outcomes of former checks, kept while path, size and time of change stay the same.

    Args:
        path: a JSON file that holds them.
        keep: write this check's outcomes, too.
    """

    def __init__(self, path: Path, keep: bool = True) -> None:
        self.path, self.keep = path, keep
        self.known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, TypeError):
            self.known = dict(json.loads(path.read_text("utf-8")))

    def check(self, file: FaceFile) -> str:
        """Run `check_face`, unless an earlier run looked at the same file."""
        try:
            stat = file.path.stat()
        except OSError as error:
            return f"{file.name}: cannot be read ({error.strerror or error})"
        key = f"{file.path.absolute()}:{file.offset}"
        stamp = [stat.st_size, stat.st_mtime_ns]
        if self.known.get(key, [])[:2] != stamp:
            self.known[key] = [*stamp, check_face(file)]
        return self.known[key][2]

    def save(self) -> None:
        """Write the outcomes; a folder that cannot be written costs the next run its time, nothing else."""
        if self.keep:
            with suppress(OSError):
                write_text(self.path, json.dumps(self.known))


def find_broken(
    files: Sequence[FaceFile], checked: CheckedFiles, *, workers: int, progress: bool = False
) -> dict[str, str]:
    """Check files with several threads.

    Args:
        workers: threads; 0 = one per core, at most 16.
    Returns:
        name -> what is wrong, of those where something is.
    """
    from tqdm import tqdm

    workers = workers or min(16, os.cpu_count() or 1)
    bar = tqdm(files, desc="check faces", unit="face", disable=not progress, delay=2)
    try:
        with ThreadPoolExecutor(workers) as pool:
            found = {file.name: problem for file, problem in prefetch(pool, checked.check, bar, 8 * workers)}
    finally:
        checked.save()
    return {name: problem for name, problem in found.items() if problem}


def without_broken(
    files: Sequence[FaceFile], broken: dict[str, str], policy: Broken, key: str
) -> list[FaceFile]:
    """Leave broken files out, or refuse to start.

    Args:
        key: the recipe's key, for the message.
    Raises:
        ConfigError: a file is broken and the policy is "stop", or all are.
    """
    kept = [file for file in files if file.name not in broken]
    if broken and (policy == "stop" or not kept):
        raise ConfigError(
            f'{describe_broken(broken, len(files), key)}; remove them, or set data.broken = "skip"'
        )
    return kept


def describe_broken(broken: dict[str, str], count: int, key: str) -> str:
    """Say in one line how many of `count` files are broken and how the first few are."""
    shown = list(broken.values())[:SHOWN]
    more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    return f"{key}: {len(broken)} of {count} pictures cannot be used: {'; '.join(shown)}{more}"
