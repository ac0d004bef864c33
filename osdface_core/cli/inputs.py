"""From files, folders and globs to pairs of input and output paths, none of which overwrites an input."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, ImageError
from ..images import SUFFIXES, find_photos, is_photo, is_unwritable, unread_photos, within, written_suffix


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


def plan(inputs: Sequence[str], out: Path) -> tuple[list[Job], list[Missing]]:
    """Decide what is read and where each result is written; touches no file.

    Args:
        inputs: files, folders (searched with everything below them) and globs (`**` for any depth). A path
            that exists is never taken for a glob.
        out: a file if there is one input file and `out` has the suffix of an image, else a folder. Below it
            results keep their path from the folder, or from the part of the glob before its first wildcard.
            Results of formats that are only read become PNG.
    Raises:
        ConfigError: several photos for one output file, one output path for two photos, or `out` with the
            suffix of a picture that is not written.
    """
    if is_unwritable(out.suffix) and not out.is_dir():
        raise ConfigError(
            f"-o {out}: {out.suffix} is not written; give a folder or one of {', '.join(SUFFIXES)}"
        )
    found: dict[Path, Path] = {}  # photo -> path below the output folder
    missing: list[Missing] = []
    for given in inputs:
        photos, told = _expand(given, out)
        for photo, below in photos:
            found.setdefault(photo, below)
        missing += told
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        if len(found) > 1 or any(os.path.isdir(given) for given in inputs):  # noqa: PTH112
            raise ConfigError(f"{out} is a file name, but there are several inputs; give a folder with -o")
        return [Job(photo, out, Path(out.stem)) for photo in found], missing
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file of another kind; give a folder or an image file with -o")
    stems = Counter(below.with_suffix("") for below in found.values())
    jobs = []
    for photo, below in found.items():
        stem = below.with_suffix("")
        # a.jpg beside a.png: the names of their crops and comparisons keep the suffix.
        jobs.append(Job(photo, out / _result(below, found.values()), stem if stems[stem] == 1 else below))
    _refuse_clashes(jobs)
    return jobs, missing


def _result(below: Path, others: Iterable[Path]) -> Path:
    """The name of a photo's result: its own, or with .png for .heic, both if a.png is there beside a.heic."""
    suffix = written_suffix(below.suffix)
    if suffix == below.suffix:
        return below
    result = below.with_suffix(suffix)
    rivals = (one for one in others if one != below and one.with_suffix("") == result.with_suffix(""))
    return (
        below.with_name(below.name + suffix)
        if any(written_suffix(r.suffix) == suffix for r in rivals)
        else result
    )


def _expand(given: str, out: Path) -> tuple[list[tuple[Path, Path]], list[Missing]]:
    """Photos behind one argument, each with its path below the output folder; and what is left out."""
    path = Path(given).expanduser()
    if os.path.isdir(path):  # noqa: PTH112 - false where Path fails: a name no disk holds
        found = find_photos(path, _inside(out, path))
        told = [Missing(str(folder), f"cannot be opened ({why})") for folder, why in found.unreadable]
        told += [Missing(given, line, failed=False) for line in found.left_out]
        return found.photos, told + ([] if found.photos else [Missing(given, "no photos in this folder")])
    if os.path.exists(path):  # noqa: PTH110
        return [(path, Path(path.name))], []
    if not glob.has_magic(given):
        return [], [Missing(given, "no such file or folder")]
    root = _fixed_part(path)
    former = _inside(out, root)
    matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    matches = [p for p in matches if not within(p, former)]
    photos = [(p, p.relative_to(root)) for p in matches if is_photo(p) and not p.is_dir()]
    told = [Missing(given, line, failed=False) for line in unread_photos(matches)]
    folders = sum(p.is_dir() for p in matches)
    if folders and "**" not in given:
        told.append(
            Missing(given, f"left out: {folders} folders; give them as inputs, or use **", failed=False)
        )
    return photos, told + ([] if photos else [Missing(given, "no photos match")])


def _inside(out: Path, root: Path) -> Path | None:
    """The output folder if it lies below the searched one: what is in it are results of a former run."""
    out, root = out.resolve(), root.resolve()
    return out if out != root and out.is_relative_to(root) else None


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
    """Knows the input files by device and inode, so that links and other spellings of a path count too."""

    def __init__(self, sources: Iterable[Path]) -> None:
        self._inputs = {identity for source in sources if (identity := _identity(source))}

    def refused(self, path: Path) -> bool:
        """Tell whether writing `path` would replace an input."""
        return _identity(path) in self._inputs

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
