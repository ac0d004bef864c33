"""One face on the disk, and tables of millions that keep a number for each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from osdface_core.errors import ImageError
from osdface_core.images.formats import HEIC, readable
from osdface_core.models.text import sidecar_tags

IMAGE_SUFFIXES = readable() - frozenset(HEIC)
"""All formats that Pillow reads itself: faces from `osdface prepare` are PNG or JPEG."""


@dataclass(frozen=True)
class FaceFile:
    """One face on the disk: a file, or a member of a tar shard (`offset` >= 0, `length` bytes).

    `size` is the side of the face crop before it was resampled [px], 0 when unknown. `tags` are words for
    what it shows.
    """

    name: str
    path: Path
    offset: int = -1
    length: int = 0
    sha256: str = ""
    identity: str = ""
    split: str = ""
    size: int = 0
    tags: str = ""

    def read(self) -> bytes:
        """Read the encoded image. Raises ImageError: unreadable."""
        try:
            if self.offset < 0:
                return self.path.read_bytes()
            with self.path.open("rb") as shard:
                shard.seek(self.offset)
                return shard.read(self.length)
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be read ({error.strerror or error})") from error


def face_tags(item: FaceFile) -> str:
    """Return what a face shows: the manifest's `tags`, else the text file beside it, else ""."""
    return item.tags or (sidecar_tags(item.path) if item.offset < 0 else "")


class FaceTable(Sequence[FaceFile]):
    """Faces in the order of their keys, eight bytes for each; `read` makes a FaceFile of a key."""

    def __init__(self, keys: Iterable[int] | np.ndarray, read: Callable[[int], FaceFile]) -> None:
        self._keys = keys if isinstance(keys, np.ndarray) else np.fromiter(keys, np.int64)
        self._read = read

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> FaceFile: ...
    @overload
    def __getitem__(self, index: slice) -> "FaceTable": ...
    def __getitem__(self, index: int | slice) -> "FaceFile | FaceTable":
        if isinstance(index, slice):
            return FaceTable(self._keys[index], self._read)
        return self._read(int(self._keys[index]))

    def without(self, rows: Iterable[int]) -> "FaceTable":
        """Leave out the faces in these places."""
        return FaceTable(np.delete(self._keys, list(rows)), self._read)
