"""From files, folders and globs to pairs of input and output paths, none of which overwrites an input.

A single folder is a stream, listed as the work goes on; several inputs are listed first.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import ConfigError, ImageError
from ..images import (
    SUFFIXES,
    PhotoSearch,
    is_photo,
    is_unwritable,
    readable,
    unread_photos,
    within,
    written_suffix,
)
from .shards import Shard


@dataclass(frozen=True)
class Job:
    """One photo: where it is, where its result goes, and its name below the output folder without suffix."""

    source: Path
    target: Path
    name: Path


@dataclass(frozen=True)
class Missing:
    """An input that led to no photo, or part of it that is left out, and why.

    Attributes:
        failed: whether that counts as a failure; not for photos of formats that are not read.
    """

    source: str
    reason: str
    failed: bool = True


class Folder:
    """The photos of one folder and all below it as jobs, listed anew by each loop over them.

    Memory does not grow with the number of photos. `missing` and `len` list the folder once to tell.

    Args:
        out, crops: where results go; as far as they lie in the folder, they are not searched.
        shard: the share of the photos that is wanted.
    """

    def __init__(self, root: Path, out: Path, crops: Path | None = None, shard: Shard | None = None) -> None:
        self.root, self.out, self.crops, self.shard = root, out, crops, shard
        results = [place for place in (out, crops) if place]
        self.search = PhotoSearch(root, [former for one in results if (former := _former(one, root))])

    @cached_property
    def _survey(self) -> tuple[int, list[Missing]]:
        count = met = 0
        for _, below in self.search:
            met += 1
            count += self.shard is None or self.shard.holds(below)
        return count, self.told(met)

    @property
    def missing(self) -> list[Missing]:
        """What is left out or cannot be opened."""
        return self._survey[1]

    def told(self, met: int) -> list[Missing]:
        """Say what the last listing, which met so many photos, has left out or could not open."""
        return _told(self.search, str(self.root), met)

    def __len__(self) -> int:
        return self._survey[0]

    def __iter__(self) -> Iterator[Job]:
        for photo, below in self.search:
            if self.shard is None or self.shard.holds(below):
                alone = self.crops is None or not self._beside(below, readable())
                name = below.with_suffix("") if alone else below
                yield Job(photo, self.out / result_name(below, self._there), name)

    def holds(self, path: Path) -> bool:
        """Tell whether a path is one of the photos, or a folder that the search begins at."""
        real = path.resolve()
        if any(real.is_relative_to(former) for former in self.search.skip):
            return False
        begun = self.search.entered
        return real in begun or (is_photo(real) and any(real.is_relative_to(one) for one in begun))

    def _there(self, below: Path) -> bool:
        return os.path.lexists(self.root / below)

    def _beside(self, below: Path, suffixes: Iterable[str]) -> bool:
        return any(self._there(other) for other in _namesakes(below, suffixes))


def plan(
    inputs: Sequence[str], out: Path, crops: Path | None = None, shard: Shard | None = None
) -> tuple[list[Job] | Folder, list[Missing]]:
    """Decide what is read and where each result is written; touches no file.

    Args:
        inputs: files, folders (searched with everything below them) and globs (`**` for any depth). A path
            that exists is never taken for a glob.
        out: a file if there is one input file and `out` has the suffix of an image, else a folder. Below it
            results keep their path from the folder, or from the part of the glob before its first wildcard.
            Results of formats that are only read become PNG.
        crops, shard: as for `Folder`.
    Returns:
        the photos (a `Folder` if that is the only input), and what led to none.
    Raises:
        ConfigError: several photos for one output file, one output path for two photos, or `out` with the
            suffix of a picture that is not written.
    """
    if is_unwritable(out.suffix) and not out.is_dir():
        raise ConfigError(
            f"-o {out}: {out.suffix} is not written; give a folder or one of {', '.join(SUFFIXES)}"
        )
    file_named = out.suffix.lower() in SUFFIXES and not out.is_dir()
    if len(inputs) == 1 and not file_named and os.path.isdir(Path(inputs[0]).expanduser()):  # noqa: PTH112
        _refuse_file(out)
        folder = Folder(Path(inputs[0]).expanduser(), out, crops, shard)
        return folder, folder.missing
    found: dict[Path, Path] = {}  # photo -> path below the output folder
    missing: list[Missing] = []
    for given in inputs:
        photos, told = _expand(given, out)
        for photo, below in photos:
            found.setdefault(photo, below)
        missing += told
    if file_named:
        if len(found) > 1 or any(os.path.isdir(given) for given in inputs):  # noqa: PTH112
            raise ConfigError(f"{out} is a file name, but there are several inputs; give a folder with -o")
        return [Job(photo, out, Path(out.stem)) for photo in found], missing
    _refuse_file(out)
    stems = Counter(below.with_suffix("") for below in found.values())
    jobs = []
    names = set(found.values())
    for photo, below in found.items():
        if shard and not shard.holds(below):
            continue
        stem = below.with_suffix("")
        # a.jpg beside a.png: the names of their crops and comparisons keep the suffix.
        jobs.append(
            Job(photo, out / result_name(below, names.__contains__), stem if stems[stem] == 1 else below)
        )
    _refuse_clashes(jobs)
    return jobs, missing


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file of another kind; give a folder or an image file with -o")


def _told(search: PhotoSearch, given: str, count: int) -> list[Missing]:
    """Say what a search that found `count` photos has left out or could not open."""
    told = [Missing(str(folder), f"cannot be opened ({why})") for folder, why in search.unreadable]
    told += [Missing(given, line, failed=False) for line in search.left_out]
    return told + ([] if count else [Missing(given, "no photos in this folder")])


def result_name(below: Path, there: Callable[[Path], bool]) -> Path:
    """Name a photo's result: its own name, or with .png for .heic, both if a.png is there beside a.heic."""
    suffix = written_suffix(below.suffix)
    if suffix == below.suffix:
        return below
    rivals = (one for one in readable() if written_suffix(one) == suffix)
    taken = any(map(there, _namesakes(below, rivals)))
    return below.with_name(below.name + suffix) if taken else below.with_suffix(suffix)


def _namesakes(below: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Other names with the same stem; suffixes in small and in large letters."""
    for suffix in suffixes:
        for other in (below.with_suffix(suffix), below.with_suffix(suffix.upper())):
            if other != below:
                yield other


def _expand(given: str, out: Path) -> tuple[list[tuple[Path, Path]], list[Missing]]:
    """Photos behind one argument, each with its path below the output folder; and what is left out."""
    path = Path(given).expanduser()
    if os.path.isdir(path):  # noqa: PTH112 - false where Path fails: a name no disk holds
        search = PhotoSearch(path, [former] if (former := _former(out, path)) else [])
        photos = list(search)
        return photos, _told(search, given, len(photos))
    if os.path.exists(path):  # noqa: PTH110
        return [(path, Path(path.name))], []
    if not glob.has_magic(given):
        return [], [Missing(given, "no such file or folder")]
    root = _fixed_part(path)
    former = _former(out, root)
    matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    matches = [p for p in matches if not within(p, former)]
    suffixes = Counter(p.suffix.lower() for p in matches)
    photos = [(p, p.relative_to(root)) for p in matches if is_photo(p) and not p.is_dir()]
    told = [Missing(given, line, failed=False) for line in unread_photos(suffixes)]
    folders = sum(p.is_dir() for p in matches)
    if folders and "**" not in given:
        told.append(
            Missing(given, f"left out: {folders} folders; give them as inputs, or use **", failed=False)
        )
    return photos, told + ([] if photos else [Missing(given, "no photos match")])


def _former(out: Path, root: Path) -> Path | None:
    """The output folder, unless the searched one lies in it: what is in it are results of a former run."""
    out = out.resolve()
    return None if root.resolve().is_relative_to(out) else out


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    fixed = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _refuse_clashes(jobs: Iterable[Job]) -> None:
    taken: dict[str, Path] = {}
    for job in jobs:
        key = os.path.normcase(job.target)
        if key in taken:
            raise ConfigError(
                f"{taken[key]} and {job.source} would both be written to {job.target}; "
                "give their common folder or a quoted glob, so that their folders are kept"
            )
        taken[key] = job.source


class Guard:
    """Knows the input files, whatever the spelling of a path.

    Those of a list by device and inode, so that hard links count too; those of a folder by where they lie.
    """

    def __init__(self, sources: Iterable[Path] | Folder) -> None:
        self._folder = sources if isinstance(sources, Folder) else None
        listed = () if isinstance(sources, Folder) else sources
        self._inputs = {identity for source in listed if (identity := _identity(source))}

    def refused(self, path: Path) -> bool:
        """Tell whether writing `path` would replace an input."""
        identity = _identity(path)
        if identity is None:
            return False
        return identity in self._inputs if self._folder is None else self._folder.holds(path)

    def check(self, path: Path) -> Path:
        """Return `path`; raise ImageError if it is an input."""
        if self.refused(path):
            raise ImageError(f"{path} is an input and is not overwritten; give another place")
        return path


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
