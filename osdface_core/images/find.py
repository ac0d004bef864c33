"""Find the photos of a folder and tell what is there but not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .formats import readable, unread_reason


@dataclass
class FoundPhotos:
    """What a search found.

    Attributes:
        photos: each photo and its path below the searched folder.
        left_out: a line for each kind of photo that is not read, and for links that are not followed.
        unreadable: folders that could not be opened, and why.
    """

    photos: list[tuple[Path, Path]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


def is_photo(path: Path) -> bool:
    """Tell whether a path names a photo that can be read; hidden files are none."""
    return path.suffix.lower() in readable() and not path.name.startswith(".")


def find_photos(folder: Path, skip: Path | None = None) -> FoundPhotos:
    """Search a folder and everything below it, linked folders included, in order of their names.

    A link is followed unless it leads into a folder that is searched anyway, or to one around it.

    Args:
        skip: a folder (resolved) whose contents are left out, for results of a former run.
    """
    found = FoundPhotos()
    entered = [folder.resolve()]
    waiting = [(folder, Path())]
    others: list[Path] = []

    def refuse(error: OSError) -> None:
        found.unreadable.append((Path(error.filename or folder), error.strerror or str(error)))

    for top, below in waiting:
        for root, folders, files in os.walk(top, onerror=refuse):
            here = Path(root)
            place = below / here.relative_to(top)
            folders[:] = sorted(f for f in folders if not f.startswith(".") and not within(here / f, skip))
            for name in (name for name in folders if (here / name).is_symlink()):
                _follow(here / name, place / name, entered, waiting, found)
            found.photos += [(here / f, place / f) for f in sorted(files) if is_photo(Path(f))]
            others += [Path(f) for f in files if not f.startswith(".")]
    found.left_out += unread_photos(others)
    return found


def _follow(
    link: Path, below: Path, entered: list[Path], waiting: list[tuple[Path, Path]], found: FoundPhotos
) -> None:
    real = link.resolve()
    if any(one != real and one.is_relative_to(real) for one in entered):
        found.left_out.append(f"{link} leads to a folder around it and is not followed")
    elif not any(real.is_relative_to(one) for one in entered):
        entered.append(real)
        waiting.append((link, below))


def unread_photos(paths: Iterable[Path]) -> list[str]:
    """Count the photos of each format that is not read, and say why, in a line; empty if there are none."""
    counts = Counter(path.suffix.lower() for path in paths)
    parts = [
        f"{count} {suffix} ({reason})"
        for suffix, count in sorted(counts.items())
        if (reason := unread_reason(suffix))
    ]
    return [f"left out: {'; '.join(parts)}"] if parts else []


def within(path: Path, folder: Path | None) -> bool:
    """Tell whether a path, links followed, lies in a (resolved) folder; False without one."""
    return folder is not None and path.resolve().is_relative_to(folder)
