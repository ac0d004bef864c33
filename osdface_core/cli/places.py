"""Folders that photos are read from and written to: on a disk, or remote storage through fsspec."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConfigError, ImageError
from ..images import is_photo
from .inputs import Folder, Missing, result_name

Listed = tuple[str, str] | Missing
"""A photo and its result, each as a path below its folder; or what cannot be restored, and why."""


@dataclass(frozen=True)
class Disk:
    """A folder on a disk, which every machine sees at the same path."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def named(self, below: str) -> str:
        """Name a photo for people."""
        return str(self.root / below)

    def photos(self, out: Disk | Store) -> Iterator[Listed]:
        """List the photos as a stream; results in `out` are none, and no result may replace a photo."""
        results = out.root if isinstance(out, Disk) else Path(self.root.resolve().anchor)
        folder, count = Folder(self.root, results), 0
        for job in folder:
            count += 1
            if isinstance(out, Disk) and job.target.exists() and folder.holds(job.target):
                reason = f"{job.target} is an input and is not overwritten; give another place"
                yield Missing(str(job.source), reason)
            else:
                yield str(job.source.relative_to(self.root)), str(job.target.relative_to(results))
        yield from folder.told(count)

    def changed(self, below: str) -> int:
        """Tell when a file was written [ns]. Raises OSError: there is none."""
        return (self.root / below).stat().st_mtime_ns

    def path(self, below: str, scratch: Path) -> Path:
        """Return where a file is read or written; `scratch` is the path of a copy, but for its suffix."""
        return self.root / below

    def fetch(self, below: str, copy: Path) -> None:
        """Bring a photo to its `path`: it is there."""

    def keep(self, below: str, copy: Path) -> None:
        """Bring a result from its `path` to its place: it is there."""


@dataclass(frozen=True)
class Store:
    """A folder on remote storage: `s3://bucket/photos`, `gs://…`, `hf://…`, or any URL that fsspec knows."""

    url: str

    def __str__(self) -> str:
        return self.url

    def named(self, below: str) -> str:
        """Name a photo for people."""
        return f"{self.url.rstrip('/')}/{below}"

    def photos(self, out: Disk | Store) -> Iterator[Listed]:
        """List the photos, folder by folder."""
        files, root = self.open()
        failed: list[OSError] = []
        count = 0
        for folder, _, names in files.walk(root, on_error=failed.append):
            inside = PurePosixPath(str(folder)).relative_to(root)
            if any(part.startswith(".") for part in inside.parts):
                continue
            for below in (inside / name for name in sorted(names) if is_photo(Path(name))):
                count += 1
                result = result_name(Path(below), lambda other: files.exists(f"{root}/{other.as_posix()}"))
                yield str(below), result.as_posix()
        yield from (Missing(self.url, f"cannot be listed ({error})") for error in failed)
        if not count:
            yield Missing(self.url, "no photos in this folder")

    def changed(self, below: str) -> int:
        """Tell when a file was written [ns]. Raises OSError: there is none."""
        files, root = self.open()
        return int(files.modified(f"{root}/{below}").timestamp() * 1e9)

    def path(self, below: str, scratch: Path) -> Path:
        """Return where a file is read or written; `scratch` is the path of a copy, but for its suffix."""
        return scratch.with_name(scratch.name + Path(below).suffix)

    def fetch(self, below: str, copy: Path) -> None:
        """Bring a photo to its `path`. Raises ImageError."""
        files, root = self.open()
        with _telling(self.named(below), "fetched"):
            files.get_file(f"{root}/{below}", str(copy))

    def keep(self, below: str, copy: Path) -> None:
        """Bring a result from its `path` to its place, whole or not at all. Raises ImageError."""
        files, root = self.open()
        place = f"{root}/{below}"
        with _telling(self.named(below), "written"):
            if files.async_impl:  # buckets: an object appears whole, with one request, and needs no folder
                files.put_file(str(copy), place)
                return
            files.makedirs(place.rpartition("/")[0], exist_ok=True)
            with files.transaction, copy.open("rb") as source, files.open(place, "wb") as target:
                shutil.copyfileobj(source, target)

    def open(self) -> tuple[Any, str]:
        """Return the file system, which each thread has for itself, and the folder's path on it.

        Raises:
            ConfigError: fsspec, or its package for this storage, is not installed, or nobody knows the URL.
        """
        try:
            from fsspec.core import url_to_fs

            files, root = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{self.url} cannot be opened: {error}") from error
        return files, root.rstrip("/")


def place(given: str) -> Disk | Store:
    """Tell a URL from a path."""
    return Store(given) if "://" in given else Disk(Path(given).expanduser())


def check_apart(source: Disk | Store, target: Disk | Store) -> None:
    """Raise ConfigError where results would lie among the photos; on a disk a folder of its own may."""
    if isinstance(source, Disk) and isinstance(target, Disk):
        if target.root.is_file():
            raise ConfigError(f"{target} is a file; give a folder")
        mixed = Folder(source.root, target.root).holds(target.root)
    else:
        (one, root), (other, out) = _opened(source), _opened(target)
        nested = f"{out}/".startswith(f"{root}/") or f"{root}/".startswith(f"{out}/")
        mixed = nested and type(one) is type(other)
    if mixed:
        raise ConfigError(f"{target} has the inputs, which are never overwritten; give another folder")


def _opened(place: Disk | Store) -> tuple[Any, str]:
    store = Store(place.root.resolve().as_uri()) if isinstance(place, Disk) else place
    return store.open()


@contextmanager
def _telling(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each storage raises its own kinds
        reason = str(error).strip() or type(error).__name__
        raise ImageError(
            f"{name} cannot be {what} ({reason}): check name, permissions and network"
        ) from error
