"""Find the photos of a folder and tell what is there but not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from .formats import readable, unread_reason

BLOCK = 10_000
"""Names of a folder that are held and sorted at a time."""


def is_photo(path: Path) -> bool:
    """Tell whether a path names a photo that can be read; hidden files are none."""
    return path.suffix.lower() in readable() and not path.name.startswith(".")


class PhotoSearch:
    """The photos of a folder and of everything below it, linked folders included, as a stream.

    Iterating lists the folders anew and yields each photo with its path below the folder: in order of names
    where a folder has at most `BLOCK` of them, in sorted blocks of that size elsewhere. So memory does not
    grow with the number of photos. A link is followed unless it leads into a folder that is searched anyway,
    or to one around it.

    Args:
        skip: folders (resolved) whose contents are left out, for results of a former run.
    Attributes:
        entered: folders (resolved) that the last search began at: the first, and those that links led to.
        unreadable: folders that could not be opened, and why.
    """

    def __init__(self, folder: Path, skip: Sequence[Path] = ()) -> None:
        self.folder, self.skip = folder, skip
        self._begin()

    def _begin(self) -> None:
        self.entered = [self.folder.resolve()]
        self.unreadable: list[tuple[Path, str]] = []
        self._around: list[str] = []
        self._unread: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[Path, Path]]:
        self._begin()
        waiting = [(self.folder, Path())]
        for folder, below in waiting:
            yield from self._search(folder, below, waiting)

    @property
    def left_out(self) -> list[str]:
        """What the last search met and left out: a line for links, one for photos that are not read."""
        return self._around + unread_photos(self._unread)

    def _search(
        self, folder: Path, below: Path, waiting: list[tuple[Path, Path]]
    ) -> Iterator[tuple[Path, Path]]:
        try:
            with os.scandir(folder) as entries:
                shown = (entry for entry in entries if not entry.name.startswith("."))
                while block := sorted(islice(shown, BLOCK), key=lambda entry: entry.name):
                    folders = [entry for entry in block if _is_folder(entry)]
                    for name in (entry.name for entry in block if not _is_folder(entry)):
                        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - far cheaper than a Path
                        if suffix in readable():
                            yield folder / name, below / name
                        elif unread_reason(suffix):
                            self._unread[suffix] += 1
                    for entry in folders:
                        path, place = folder / entry.name, below / entry.name
                        if any(within(path, one) for one in self.skip):
                            continue
                        if entry.is_symlink():
                            self._follow(path, place, waiting)
                        else:
                            yield from self._search(path, place, waiting)
        except OSError as error:
            self.unreadable.append((Path(error.filename or folder), error.strerror or str(error)))

    def _follow(self, link: Path, below: Path, waiting: list[tuple[Path, Path]]) -> None:
        real = link.resolve()
        if any(one != real and one.is_relative_to(real) for one in self.entered):
            self._around.append(f"{link} leads to a folder around it and is not followed")
        elif not any(real.is_relative_to(one) for one in self.entered):
            self.entered.append(real)
            waiting.append((link, below))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where nobody may look
        return False


def unread_photos(counts: Counter[str]) -> list[str]:
    """Say in a line which formats are not read, and why; empty if `counts` of suffixes has only others."""
    parts = [
        f"{count} {suffix} ({reason})"
        for suffix, count in sorted(counts.items())
        if (reason := unread_reason(suffix))
    ]
    return [f"left out: {'; '.join(parts)}"] if parts else []


def within(path: Path, folder: Path | None) -> bool:
    """Tell whether a path, links followed, lies in a (resolved) folder; False without one."""
    return folder is not None and path.resolve().is_relative_to(folder)
