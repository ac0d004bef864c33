"""Where aligned faces come from: a folder, a manifest (CSV or JSON), or WebDataset shards."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from osdface_core.errors import ConfigError, ImageError
from osdface_core.images.formats import HEIC, readable
from osdface_core.models.text import sidecar_tags

from ..seeds import mix

IMAGE_SUFFIXES = readable() - frozenset(HEIC)
"""All formats that Pillow reads itself: faces from `osdface prepare` are PNG or JPEG."""
MANIFEST_NAMES = ("manifest.csv", "manifest.json")


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


def list_faces(source: str | Path, *, split: str | None = None) -> list[FaceFile]:
    """List all faces of a source in a stable order (by name).

    A remote shard is fetched once and kept in ~/.cache/osdface/shards.

    Args:
        source: a folder (its manifest.csv or manifest.json when it has one, else every image below it), a
            manifest file, or WebDataset shards: paths or URLs with braces or globs ("faces-{000..099}.tar").
        split: keep the rows of a manifest with this split; rows without a split always stay.
    Raises:
        ConfigError: nothing there, or a manifest without usable columns.
    """
    text = str(source)
    if not text:
        raise ConfigError("no data source given: set data.train to a folder, a manifest or a shard pattern")
    path = Path(text).expanduser()
    if ".tar" in text or "://" in text or text.startswith("pipe:"):
        items = _shards(text)
    elif path.is_dir():
        manifest = next((path / name for name in MANIFEST_NAMES if (path / name).is_file()), None)
        items = read_manifest(manifest) if manifest else _folder(path)
    elif path.is_file() and path.suffix.lower() in (".csv", ".json"):
        items = read_manifest(path)
    else:
        raise ConfigError(
            f"data source {text!r} is no folder, manifest (.csv, .json) or shard pattern (.tar)"
        )
    if split is not None:
        items = [item for item in items if item.split in ("", split)]
    if not items:
        wanted = f" of split {split!r}" if split else ""
        raise ConfigError(f"data source {text!r} has no images{wanted} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return items


def _folder(folder: Path) -> list[FaceFile]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    named = sorted((file.relative_to(folder).as_posix(), file) for file in files)
    return [FaceFile(name, file) for name, file in named]


def read_manifest(path: Path) -> list[FaceFile]:
    """Read a manifest: `file` (or `path`) relative to it; optional sha256, identity, split, size, tags."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text))) if path.suffix.lower() == ".csv" else json.loads(text)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"manifest {path} cannot be read: {error}") from error
    if isinstance(rows, dict):
        rows = rows.get("faces")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f'manifest {path}: expected a list of rows, or {{"faces": [rows]}}')
    return sorted((_row(path, row, number) for number, row in enumerate(rows, 1)), key=lambda item: item.name)


def _row(manifest: Path, row: dict, number: int) -> FaceFile:
    name = row.get("file") or row.get("path")
    if not name:
        raise ConfigError(f"manifest {manifest}, row {number}: no `file` column")
    try:
        size = int(float(row.get("size") or 0))
    except ValueError as error:
        raise ConfigError(f"manifest {manifest}, row {number}: {error}") from None
    texts = (str(row.get(key) or "") for key in ("sha256", "identity", "split", "tags"))
    sha256, identity, split, tags = texts
    return FaceFile(str(name), manifest.parent / str(name), -1, 0, sha256, identity, split, size, tags)


def face_tags(item: FaceFile) -> str:
    """Return what a face shows: the manifest's `tags`, else the text file beside it, else ""."""
    return item.tags or (sidecar_tags(item.path) if item.offset < 0 else "")


def _shards(pattern: str) -> list[FaceFile]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise ConfigError(f"shards {pattern!r} need the webdataset package: pip install webdataset") from None
    shards = [shard for url in expand_urls(pattern) for shard in _expand_glob(url)]
    return [item for shard in shards for item in _index_shard(_local(shard))]


def _expand_glob(url: str) -> list[str]:
    """Expand wildcards in the file name of a local shard; anything else stays as it is."""
    path = Path(url).expanduser()
    if "://" in url or url.startswith("pipe:") or not any(mark in path.name for mark in "*?["):
        return [url]
    return sorted(str(match) for match in path.parent.glob(path.name))


def _local(url: str) -> Path:
    """Return the shard as a local file; a remote one is streamed through webdataset once and kept."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" not in url and not url.startswith("pipe:"):
        return Path(url).expanduser()
    folder = Path("~/.cache/osdface/shards").expanduser()
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.tar"
    if not target.is_file():
        from webdataset.gopen import gopen

        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.part")
        try:
            with gopen(url, "rb") as stream, partial.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            partial.replace(target)
        except Exception as error:
            status = re.search(r"exit \d+", str(error))  # the rest is the fetching program's command line
            reason = status.group() if status else error
            raise ConfigError(f"shard {url} cannot be fetched ({reason}): is it reachable?") from error
        finally:
            partial.unlink(missing_ok=True)
    return target


def _index_shard(shard: Path) -> list[FaceFile]:
    """Index the images inside an uncompressed tar, so that any face can be read without the others."""
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [m for m in archive if m.isfile() and Path(m.name).suffix.lower() in IMAGE_SUFFIXES]
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"shard {shard} cannot be read as an uncompressed tar: {error}") from error
    return [FaceFile(f"{shard.name}/{m.name}", shard, m.offset_data, m.size) for m in members]


def decode(item: FaceFile, resolution: int) -> np.ndarray:
    """Read one square face as (resolution, resolution, 3) uint8, resized with antialiasing when it differs.

    Raises:
        ImageError: unreadable, or not square, which means that it is no aligned face.
    """
    try:
        with Image.open(io.BytesIO(item.read())) as picture:
            if picture.mode.startswith("I;16"):  # Pillow clips 16-bit grey instead of scaling it
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            face = ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageError(
            f"{item.name}: no readable image ({error}): remove it or run `osdface prepare`"
        ) from error
    refuse_oblong(item.name, face.size)
    if face.size != (resolution, resolution):
        face = face.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(face)


def refuse_oblong(name: str, size: tuple[int, int]) -> None:
    """Raise ImageError unless width and height agree to 2 %."""
    if abs(size[0] - size[1]) > 0.02 * max(size):
        raise ImageError(
            f"{name} is {size[0]}x{size[1]}, expected a square aligned face: "
            "run `osdface prepare` on photos first"
        )


def hold_out(items: Sequence[FaceFile], share: float, seed: int = 0) -> tuple[list[FaceFile], list[FaceFile]]:
    """Split by person: (train, held out). Faces of one identity stay together; no side stays empty.

    Items without an identity count as a person each. A person's side depends on the seed and the names alone.
    """
    people = [item.identity or f"file:{item.name}" for item in items]
    ranked = sorted(set(people), key=lambda person: mix(seed, _text_hash(person)))
    if len(ranked) < 2:
        raise ConfigError("a validation split needs faces of at least two people")
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    held = set(ranked[:count])
    return (
        [i for i, p in zip(items, people, strict=True) if p not in held],
        [i for i, p in zip(items, people, strict=True) if p in held],
    )


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(_utf8(text)).digest()[:8], "big")


def _utf8(text: str) -> bytes:
    """Encode a text in which there may be file names that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace")


def data_hash(items: Iterable[FaceFile]) -> str:
    """Hash a data set: all names with their content hashes (or sizes on disk)."""
    digest = hashlib.sha256()
    for item in items:
        content = item.sha256 or str(item.length if item.offset >= 0 else item.path.stat().st_size)
        digest.update(_utf8(f"{item.name}\0{content}\n"))
    return digest.hexdigest()
