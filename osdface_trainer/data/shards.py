"""Faces in WebDataset shards: local tars at random, remote ones whole or, by an index, as a stream."""

import hashlib
import json
import os
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, overload

import numpy as np

from osdface_core.errors import ConfigError, ImageError

from .faces import IMAGE_SUFFIXES, FaceFile, FaceTable

_BLOCK = tarfile.BLOCKSIZE
_AHEAD = 2
"""Shards that a process fetches at a time."""
_PAUSES = (1.0, 4.0)
"""Seconds after each fetch that failed, before the next."""


def shard_faces(pattern: str) -> FaceTable:
    """List the faces of shards; a remote one is fetched as a whole and kept.

    Args:
        pattern: paths or URLs with braces, or globs for local ones.
    Raises:
        ConfigError: a shard that is not there, or is no uncompressed tar.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise ConfigError(f"shards {pattern!r} need the webdataset package: pip install webdataset") from None
    shards = [_local(shard) for url in expand_urls(pattern) for shard in _expand_glob(url)]
    places = [_face_offsets(shard) for shard in shards]
    starts = np.cumsum([0, *(shard.stat().st_size for shard in shards)])

    def face(key: int) -> FaceFile:
        number = int(np.searchsorted(starts, key, "right")) - 1
        return _face_at(shards[number], key - int(starts[number]))

    keys = [found + start for found, start in zip(places, starts, strict=False)]
    return FaceTable(np.concatenate([np.empty(0, np.int64), *keys]), face)


def _expand_glob(url: str) -> list[str]:
    """Expand wildcards in the file name of a local shard; anything else stays as it is."""
    path = Path(url).expanduser()
    if _remote(url) or not any(mark in path.name for mark in "*?["):
        return [url]
    return sorted(str(match) for match in path.parent.glob(path.name))


def _remote(url: str) -> bool:
    return "://" in url or url.startswith("pipe:")


def _local(url: str) -> Path:
    """Return the shard as a local file; a remote one is fetched by one process of the machine for all."""
    if not _remote(url):
        return Path(url).expanduser()
    from filelock import FileLock

    folder = Path("~/.cache/osdface/shards").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
    with FileLock(target.with_suffix(".lock")):
        if not target.is_file():
            _fetch(url, target)
    return target


def _fetch(url: str, target: Path) -> None:
    """Fetch a shard, again where it failed, so that a run outlives a storage's hiccup."""
    for pause in _PAUSES:
        try:
            return _fetch_once(url, target)
        except ConfigError:
            time.sleep(pause)
    _fetch_once(url, target)


def _fetch_once(url: str, target: Path) -> None:
    partial = target.with_suffix(f".{os.getpid()}.part")
    try:
        with _open(url) as stream, partial.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
        partial.replace(target)
    except Exception as error:  # each storage raises its own kinds
        status = re.search(r"exit \d+", str(error))  # the rest is the fetching program's command line
        reason = status.group() if status else str(error).strip() or type(error).__name__
        raise ConfigError(f"shard {url} cannot be fetched ({reason}): is it reachable?") from error
    finally:
        partial.unlink(missing_ok=True)


def _open(url: str) -> Any:
    """Open a place: `pipe:` and http as webdataset does (curl), everything else through fsspec."""
    if url.startswith(("pipe:", "http://", "https://")):
        from webdataset.gopen import gopen

        return gopen(url, "rb")
    from fsspec.core import url_to_fs

    files, path = url_to_fs(url)
    return files.open(path, "rb")


def _face_offsets(shard: Path) -> np.ndarray:
    """Find the images inside an uncompressed tar: where the header before each begins, (N,) int64."""
    try:
        with tarfile.open(shard, "r:") as archive:
            data = [m.offset_data for m in archive if m.isfile() and _is_image(m.name)]
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"shard {shard} cannot be read as an uncompressed tar: {error}") from error
    return np.array(data, np.int64) - _BLOCK


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _face_at(shard: Path, offset: int) -> FaceFile:
    """Read the header of a face in a tar. Raises ImageError: it is not there any more."""
    try:
        with shard.open("rb") as file:
            file.seek(offset)
            member = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
    except (OSError, tarfile.TarError) as error:
        raise ImageError(f"{shard}: cannot be read ({error})") from error
    return FaceFile(f"{shard.name}/{member.name}", shard, offset + _BLOCK, member.size)


class _Held(NamedTuple):
    """A shard on the disk: where its faces are; `size` in bytes of what was fetched, 0 for one's own file."""

    path: Path
    offsets: np.ndarray
    size: int


class StreamedFaces(Sequence[FaceFile]):
    """Faces of shards that are fetched when they are needed, by an index that counts them.

    Args:
        shards: path or URL of each shard and how many faces it has.
        limit: bytes of fetched shards that may stay on the disk; those that are passed go first.
    """

    def __init__(self, shards: Iterable[tuple[str, int]], limit: float) -> None:
        counted = [(url, count) for url, count in shards if count > 0]
        self.urls = [url for url, _ in counted]
        self.ends = np.cumsum([count for _, count in counted], dtype=np.int64)
        """(S,) int64: the number of faces up to the end of each shard."""
        self._limit = limit
        self._held: dict[int, Future[_Held]] = {}
        self._passed: dict[int, None] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_AHEAD)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, index: int) -> FaceFile: ...
    @overload
    def __getitem__(self, index: slice) -> NoReturn: ...
    def __getitem__(self, index: int | slice) -> FaceFile:
        if isinstance(index, slice):
            raise ConfigError("a shard index counts as a whole: data.limit does not go with it")
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.ends, index, "right"))
        held = self._get(number)
        if not held.path.exists():  # removed by another process
            with self._lock:
                self._held.pop(number, None)
            held = self._get(number)
        return _face_at(held.path, int(held.offsets[index - self._start(number)]))

    def fetch(self, number: int) -> None:
        """Begin to fetch a shard, unless it is there, and keep it until it is passed."""
        with self._lock:
            self._begin(number)
            self._passed.pop(number, None)

    def leave(self, number: int) -> None:
        """Note that a shard is passed, and remove the longest passed ones while there are too many bytes."""
        with self._lock:
            self._passed[number] = None
            self._shrink()

    def _get(self, number: int) -> _Held:
        """Wait for a shard; one that is not there any more, or that no one announced, counts as passed."""
        with self._lock:
            if number not in self._held:
                self._passed[number] = None
                self._shrink()
            held = self._begin(number)
        return held.result()

    def _begin(self, number: int) -> Future[_Held]:
        if number not in self._held:
            self._held[number] = self._pool.submit(self._bring, number)
        return self._held[number]

    def _shrink(self) -> None:
        there = {n: held.result() for n, held in self._held.items() if held.done() and not held.exception()}
        size = sum(held.size for held in there.values())
        for oldest in [n for n in self._passed if n in there]:
            if size <= self._limit:
                break
            size -= there[oldest].size
            del self._passed[oldest], self._held[oldest]
            if there[oldest].size:
                there[oldest].path.unlink(missing_ok=True)

    def fingerprint(self) -> str:
        """Hash what names these faces: the shards' file names and counts."""
        names = [url.rpartition("/")[2] for url in self.urls]
        return hashlib.sha256(json.dumps([names, self.ends.tolist()]).encode()).hexdigest()

    def _start(self, number: int) -> int:
        return int(self.ends[number - 1]) if number else 0

    def _bring(self, number: int) -> _Held:
        url, count = self.urls[number], int(self.ends[number]) - self._start(number)
        path = _local(url)
        try:
            offsets = _face_offsets(path)
        except ConfigError:
            if path.exists():
                raise
            offsets = _face_offsets(_local(url))  # another process had removed it in between
        if len(offsets) != count:
            raise ConfigError(
                f"shard {url} has {len(offsets)} pictures, {count} in the index: write the index anew"
            )
        return _Held(path, offsets, path.stat().st_size if _remote(url) else 0)


def read_index(index: str, limit: float) -> StreamedFaces:
    """Read an index of shards, the JSON of `widsindex`: {"shardlist": [{"url": …, "nsamples": …}, …]}.

    Args:
        index: path or URL; the shards' URLs may be relative to it.
        limit: see StreamedFaces.
    Raises:
        ConfigError: unreadable, or no such JSON.
    """
    try:
        with _open(index) if _remote(index) else Path(index).expanduser().open("rb") as stream:
            content: Any = json.loads(stream.read())
    except Exception as error:  # each storage raises its own kinds
        raise ConfigError(f"shard index {index} cannot be read: {error}") from error
    try:
        shards = [(str(row["url"]), int(row["nsamples"])) for row in content["shardlist"]]
    except (KeyError, TypeError, ValueError):
        shards = []
    if not shards:
        raise ConfigError(
            f'shard index {index}: expected {{"shardlist": [{{"url": …, "nsamples": …}}, …]}}, as '
            "`widsindex create` of the package wids writes it"
        )
    folder = index.rpartition("/")[0]
    near = [
        url if _remote(url) or Path(url).is_absolute() or not folder else f"{folder}/{url}"
        for url, _ in shards
    ]
    return StreamedFaces(zip(near, (count for _, count in shards), strict=True), limit)
