"""Where aligned faces come from: a folder, a manifest (CSV or JSON), WebDataset shards, an index of them."""

import csv
import hashlib
import io
import json
import mmap
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from osdface_core.errors import ConfigError, ImageError

from ..seeds import mix
from .faces import IMAGE_SUFFIXES, FaceFile, FaceTable
from .shards import StreamedFaces, read_index, shard_faces

Faces = FaceTable | StreamedFaces
Text = bytes | mmap.mmap
MANIFEST_NAMES = ("manifest.csv", "manifest.json")


def list_faces(source: str | Path, *, split: str | None = None, limit: float = 1e11) -> Faces:
    """List all faces of a source in a stable order (by name), eight bytes for each.

    Args:
        source: a folder (its manifest.csv or manifest.json when it has one, else every image below it), a
            manifest file, WebDataset shards (paths or URLs with braces or globs, "faces-{000..099}.tar"), or
            an index of shards (`read_index`), by which they are fetched as they are needed.
        split: keep the rows of a manifest with this split; rows without a split always stay.
        limit: of the bytes that an index's fetched shards take on the disk.
    Raises:
        ConfigError: nothing there, or a manifest without usable columns.
    """
    text = str(source)
    if not text:
        raise ConfigError("no data source given: set data.train to a folder, a manifest or a shard pattern")
    path = Path(text).expanduser()
    if text.endswith(".json") and ("://" in text or _is_index(path)):
        items: Faces = read_index(text, limit)
    elif ".tar" in text or "://" in text or text.startswith("pipe:"):
        items = shard_faces(text)
    elif path.is_dir():
        manifest = next((path / name for name in MANIFEST_NAMES if (path / name).is_file()), None)
        items = read_manifest(manifest, split) if manifest else _folder(path)
    elif path.is_file() and path.suffix.lower() in (".csv", ".json"):
        items = read_manifest(path, split)
    else:
        raise ConfigError(
            f"data source {text!r} is no folder, manifest (.csv, .json) or shard pattern (.tar)"
        )
    if not items:
        wanted = f" of split {split!r}" if split else ""
        raise ConfigError(f"data source {text!r} has no images{wanted} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return items


def _is_index(path: Path) -> bool:
    try:
        return "shardlist" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _folder(folder: Path) -> FaceTable:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    text = b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in names)

    def face(start: int) -> FaceFile:
        name = text[start : text.index(b"\0", start)].decode("utf-8", "surrogateescape")
        return FaceFile(name, folder / name)

    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0)
    return FaceTable(np.concatenate([[0], ends[:-1] + 1]) if names else ends, face)


class _Lines:
    """The lines of a text in memory, from a place on; `at` is where the next one begins."""

    def __init__(self, text: Text, at: int = 0) -> None:
        self._text, self.at = text, at

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.at >= len(self._text):
            raise StopIteration
        start, self.at = self.at, self._text.find(b"\n", self.at) + 1 or len(self._text)
        return self._text[start : self.at].decode("utf-8")


def read_manifest(path: Path, split: str | None = None) -> FaceTable:
    """Read a manifest: `file` (or `path`) relative to it; optional sha256, identity, split, size, tags.

    A row stays in the file, which is mapped into memory and shared by all processes, until it is asked for.
    """
    try:
        return _Manifest(path).table(split)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"manifest {path} cannot be read: {error}") from error


class _Manifest:
    """The rows of a manifest by where they begin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = _mapped(path) if path.suffix.lower() == ".csv" else _as_csv(path)
        lines = _Lines(self.text)
        self.columns = [name.removeprefix("\ufeff") for name in next(csv.reader(lines), [])]
        self.first = lines.at

    def table(self, split: str | None) -> FaceTable:
        """Look at every row once; the names are kept only where they have to be sorted."""
        keys, last, sorted_by_name = array("q"), "", True
        for number, (start, values) in enumerate(self._rows(), 1):
            row = self._row(values, number)
            if split is None or row.get("split", "") in ("", split):
                keys.append(start)
                sorted_by_name, last = sorted_by_name and last <= row["name"], row["name"]
        if not sorted_by_name:
            keys = array("q", sorted(keys, key=lambda key: self.read(key).name))
        return FaceTable(np.frombuffer(keys, np.int64) if keys else np.empty(0, np.int64), self.read)

    def read(self, start: int) -> FaceFile:
        """Read the row that begins there."""
        row = self._row(next(csv.reader(_Lines(self.text, start))), 0)
        texts = (row.get(key, "") for key in ("sha256", "identity", "split", "tags"))
        sha256, identity, split, tags = texts
        size = int(float(row.get("size") or 0))
        return FaceFile(
            row["name"], self.path.parent / row["name"], -1, 0, sha256, identity, split, size, tags
        )

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        lines = _Lines(self.text, self.first)
        start = lines.at
        for values in csv.reader(lines):
            if values:
                yield start, values
            start = lines.at

    def _row(self, values: list[str], number: int) -> dict[str, str]:
        row = dict(zip(self.columns, values, strict=False))
        row["name"] = row.get("file") or row.get("path") or ""
        if not row["name"]:
            raise ConfigError(f"manifest {self.path}, row {number}: no `file` column")
        try:
            float(row.get("size") or 0)
        except ValueError as error:
            raise ConfigError(f"manifest {self.path}, row {number}: {error}") from None
        return row


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _as_csv(path: Path) -> bytes:
    """Read the rows of a JSON manifest as those of a CSV one."""
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(rows, dict):
        rows = rows.get("faces")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f'manifest {path}: expected a list of rows, or {{"faces": [rows]}}')
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(key for row in rows for key in row))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


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
    ranked = sorted(set(people), key=lambda person: mix(seed, text_hash(person)))
    if len(ranked) < 2:
        raise ConfigError("a validation split needs faces of at least two people")
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    held = set(ranked[:count])
    return (
        [i for i, p in zip(items, people, strict=True) if p not in held],
        [i for i, p in zip(items, people, strict=True) if p in held],
    )


def text_hash(text: str) -> int:
    """Hash a text to 64 bits."""
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
