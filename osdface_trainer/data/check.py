"""Look at every picture of a data set before the first step, not hours later when it is drawn."""

import io
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from osdface_core.errors import ConfigError, ImageError
from osdface_core.files import replacing

from .faces import FaceFile
from .prefetch import prefetch
from .shards import StreamedFaces
from .sources import Faces, refuse_oblong, text_hash

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
    """Pictures that a former check found sound, eight bytes for each: path, size and time of change, hashed.

    Args:
        path: a .npy file that holds them.
        keep: write this check's outcomes, too.
    """

    def __init__(self, path: Path, keep: bool = True) -> None:
        self.path, self.keep = path, keep
        self._known = np.empty(0, np.uint64)
        self._new = array("Q")
        with suppress(OSError, ValueError, EOFError):
            self._known = np.load(path, allow_pickle=False).astype(np.uint64)

    def check(self, file: FaceFile) -> str:
        """Run `check_face`, unless an earlier run found the same file sound."""
        try:
            stat = file.path.stat()
        except OSError as error:
            return f"{file.name}: cannot be read ({error.strerror or error})"
        stamp = f"{file.path.absolute()}:{file.offset}:{stat.st_size}:{stat.st_mtime_ns}"
        hashed = text_hash(stamp)
        at = int(np.searchsorted(self._known, np.uint64(hashed)))
        if at == len(self._known) or self._known[at] != hashed:
            if problem := check_face(file):
                return problem
            self._new.append(hashed)
        return ""

    def save(self) -> None:
        """Write the outcomes; a folder that cannot be written costs the next run its time, nothing else."""
        if self.keep and self._new:
            self._known = np.union1d(self._known, np.array(self._new, np.uint64))
            with suppress(OSError), replacing(self.path) as temporary, temporary.open("wb") as out:
                np.save(out, self._known)


def find_broken(
    files: Sequence[FaceFile], checked: CheckedFiles, *, workers: int, progress: bool = False
) -> dict[int, str]:
    """Check files with several threads.

    Args:
        workers: threads; 0 = one per core, at most 16.
    Returns:
        place in `files` -> what is wrong, of those where something is; shards that are streamed are checked
        when their faces are drawn.
    """
    from tqdm import tqdm

    if isinstance(files, StreamedFaces):
        return {}
    workers = workers or min(16, os.cpu_count() or 1)
    bar = tqdm(range(len(files)), desc="check faces", unit="face", disable=not progress, delay=2)
    try:
        with ThreadPoolExecutor(workers) as pool:
            found = prefetch(pool, lambda at: checked.check(files[at]), bar, 8 * workers)
            return {at: problem for at, problem in found if problem}
    finally:
        checked.save()


def without_broken(files: Faces, broken: dict[int, str], policy: Broken, key: str) -> Faces:
    """Leave broken files out, or refuse to start.

    Args:
        key: the recipe's key, for the message.
    Raises:
        ConfigError: a file is broken and the policy is "stop", or all are.
    """
    if not broken or isinstance(files, StreamedFaces):
        return files
    if policy == "stop" or len(broken) == len(files):
        raise ConfigError(
            f'{describe_broken(broken, len(files), key)}; remove them, or set data.broken = "skip"'
        )
    return files.without(broken)


def describe_broken(broken: dict[int, str], count: int, key: str) -> str:
    """Say in one line how many of `count` files are broken and how the first few are."""
    shown = list(broken.values())[:SHOWN]
    more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    return f"{key}: {len(broken)} of {count} pictures cannot be used: {'; '.join(shown)}{more}"
