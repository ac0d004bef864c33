"""Any photos → aligned, filtered training faces with a manifest: resumable, and repeatable to the byte.

Two passes. The first looks at each photo by itself and notes the outcome in a file, so a killed run
continues where it stopped and an unchanged photo is never looked at twice. The second looks at all faces
together (duplicates, people, hold-out) and writes the manifest; it takes seconds and runs every time.
"""

import errno
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osdface_core.errors import CheckpointError, ConfigError, ImageError
from osdface_core.faces import align, detect
from osdface_core.files import write_text
from osdface_core.images import PhotoSearch, read_photo, readable
from osdface_core.models.identity import MOBILEFACENET_FILE, MOBILEFACENET_SOURCE, embed, load_identity
from osdface_core.weights import find_weights

from ..data.prefetch import prefetch
from .photos import Embed, PhotoRecord, PrepareOptions, process_photo
from .resume import PhotoRecords
from .selection import distinct, of_person, people_of, split_of, write_manifest

# An error of this photo's name; any other is the disk's.
BAD_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


@dataclass(frozen=True)
class PrepareSummary:
    """Outcome of `prepare`. Counts are faces unless named otherwise.

    `rejected` counts by reason, "duplicate" and "same file" (photos) included; `unreadable` lists photos and
    folders and why; `left_out` has a line for photos of formats that are not read; `resumed` is how many
    photos an earlier run had done; `split_by` is "identity" or, when all faces are one person, "photo";
    `told_apart` says whether a face network grouped the faces, or only their folders and photos.
    """

    manifest: Path
    photos: int
    resumed: int
    faces: int
    train: int
    val: int
    identities: int
    split_by: str
    told_apart: bool = True
    rejected: dict[str, int] = field(default_factory=dict)
    unreadable: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Tell the outcome in a few sentences."""
        out = [
            f"{self.photos} photos ({self.resumed} done before) → {self.faces} faces of "
            f"{self.identities} people: {self.train} train, {self.val} val (split by {self.split_by})"
        ]
        if not self.told_apart:
            out.append(
                "people were told apart by folder and photo only: give --identity a face network's weights "
                f"({MOBILEFACENET_FILE} from {MOBILEFACENET_SOURCE})"
            )
        out += [f"left out, {reason}: {count}" for reason, count in sorted(self.rejected.items())]
        if self.unreadable:
            out.append(f"left out, unreadable: {len(self.unreadable)}")
        out += [f"unreadable: {photo}: {why}" for photo, why in self.unreadable]
        out += self.left_out
        return [*out, f"manifest: {self.manifest}"]


def prepare(
    src: str | Path,
    dst: str | Path,
    options: PrepareOptions | None = None,
    *,
    device: torch.device | str | None = None,
    duplicates: int = 16,
    holdout: float = 0.05,
    seed: int = 0,
    identity: str | Path | None = None,
    same_person: float = 0.65,
    person: Sequence[str | Path] = (),
    progress: bool = True,
) -> PrepareSummary:
    """Turn a folder of photos into a folder of training faces.

    Writes faces/…, manifest.csv (what `FaceDataset` reads) and report.json below `dst`. Call it again after a
    kill or after adding, changing or removing photos: only what changed is done again. With another value of
    an option of `PrepareOptions` every photo is.

    Args:
        src: folder of photos, searched recursively. dst: target folder; may lie below `src`.
        options: what decides about a single photo; default `PrepareOptions()`.
        device: where faces are detected and embedded.
        duplicates: two faces are the same picture when their looks differ in at most so many of 255 bits (the
            larger one stays); −1 keeps all. Photos with equal bytes count once in any case.
        holdout: share of people, of a single one of the photos, whose faces get split "val"; 0 for none.
        seed: of the hold-out split.
        identity: weights for `osdface_core.models.identity.load_identity`, by default those in torch's cache;
            faces are then grouped by person, without them by the sub-folder they lie in, or by photo.
        same_person: cosine from which two faces count as one person.
        person: photos of one person (the largest face counts); faces that likeness does not link to them,
            directly or by other faces, are left out, and the hold-out is other photos of the person.
        progress: show a bar on stderr.
    Raises:
        ConfigError: no photos, or an option out of range. DetectorError: no usable detector.
        CheckpointError: unusable identity weights, or none where `person` needs them.
        ImageError: a photo of `person` cannot be read or shows no face. Any other photo that cannot be
            read is reported, not raised.
    """
    src, dst = Path(src).expanduser(), Path(dst).expanduser()
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout is {holdout}, expected a share from 0 to below 1")
    options = options or PrepareOptions()
    photos, found = _list_photos(src, dst)
    weights = _identity_weights(identity, needed=bool(person))
    embedder = _embedder(weights, device)
    wanted = [_portrait(photo, options, device, embedder) for photo in person if embedder]
    run = _Run(photos, dst, options, PhotoRecords(dst, options, weights), device, embedder, progress)
    records, resumed = _first_pass(run)
    chosen, rejected = distinct(records, duplicates)
    gone = {record.source for record, face in chosen if not (dst / face.file).is_file()}
    if gone:  # crops that someone deleted, or duplicates that are wanted now
        run.records.forget(gone)
        records, _ = _first_pass(run)
        chosen, rejected = distinct(records, duplicates)
    if wanted:
        faces, chosen = len(chosen), of_person(chosen, torch.stack(wanted), same_person)
        rejected["another person"] = faces - len(chosen)
    people = ["person"] * len(chosen) if wanted else people_of(chosen, same_person)
    split, split_by = split_of(chosen, people, holdout, seed)
    summary = PrepareSummary(
        write_manifest(dst, chosen, people, split),
        photos=len(run.photos),
        resumed=resumed,
        faces=len(chosen),
        train=split.count("train"),
        val=split.count("val"),
        identities=len(set(people)),
        split_by=split_by,
        told_apart=embedder is not None,
        rejected=dict(rejected),
        unreadable=(
            *((str(folder), why) for folder, why in found.unreadable),
            *((r.source, r.error) for r in records if r.error),
        ),
        left_out=tuple(found.left_out),
    )
    report = json.dumps(asdict(summary), default=str, indent=1, ensure_ascii=False)
    write_text(dst / "report.json", report)
    run.records.rewrite()
    _remove_unlisted(dst, {face.file for _, face in chosen})
    return summary


@dataclass(frozen=True)
class _Run:
    photos: dict[str, Path]
    dst: Path
    options: PrepareOptions
    records: PhotoRecords
    device: torch.device | str | None
    embed: Embed | None
    progress: bool


def _list_photos(src: Path, dst: Path) -> tuple[dict[str, Path], PhotoSearch]:
    """Photos by their path below `src`, and what the search left out."""
    if not src.is_dir():
        raise ConfigError(f"photo folder {src} does not exist")
    found = PhotoSearch(src, [dst.resolve()])
    photos = {below.as_posix(): path for path, below in found}
    if not photos:
        told = (*found.left_out, *(f"{path} cannot be opened ({why})" for path, why in found.unreadable))
        kinds = ", ".join(sorted(readable()))
        raise ConfigError("; ".join((f"no photos below {src} ({kinds})", *told)))
    return dict(sorted(photos.items())), found


def _identity_weights(identity: str | Path | None, *, needed: bool) -> Path | None:
    """Find the face network's weights: those given, else torch's cache; None where there are none."""
    try:
        return find_weights(
            identity, MOBILEFACENET_FILE, "face identity (MobileFaceNet)", MOBILEFACENET_SOURCE
        )
    except CheckpointError:
        if identity or needed:
            raise
        return None


def _embedder(weights: Path | None, device: torch.device | str | None) -> Embed | None:
    if weights is None:
        return None
    net = load_identity(weights, device or "cpu")
    return lambda faces: embed(net, faces.to(device or "cpu"))


def _portrait(
    photo: str | Path, options: PrepareOptions, device: torch.device | str | None, embedder: Embed
) -> Tensor:
    """Embed the largest face of a photo, (D,) of length 1."""
    pixels = read_photo(Path(photo)).pixels
    found = detect(pixels, options.detector, detector_dir=options.detector_dir, device=device)
    if not found:
        raise ImageError(f"{photo}: no face found; --person needs a photo that shows the person")
    largest = max(found, key=lambda face: face.size)
    return embedder(align(pixels, [largest], options.size, device=device).clamp(0, 1))[0].cpu()


def _first_pass(run: _Run) -> tuple[list[PhotoRecord], int]:
    """Make a record for every photo, and how many of them an earlier run had made."""
    from tqdm import tqdm

    records, resumed, seen = [], 0, set()
    run.records.forget(run.records.records.keys() - run.photos.keys())
    with ThreadPoolExecutor(2) as pool:
        bar = tqdm(run.photos, desc="prepare", unit="photo", disable=None if run.progress else True)
        for source, (sha256, pixels, error) in prefetch(pool, partial(_load, run), bar, 3):
            record = run.records.done(source, sha256)
            if error:
                record = PhotoRecord(source, sha256, error=error)
            elif sha256 in seen:
                record = PhotoRecord(source, sha256, rejected=("same file",))
            elif record:
                resumed += 1
            elif pixels is not None:
                record = _process(run, pixels, source, sha256)
                run.records.add(record)
            seen.add(sha256)
            records.append(record)
    return records, resumed


def _load(run: _Run, source: str) -> tuple[str, np.ndarray | None, str]:
    """Read sha256 and pixels of a photo (None if it is done before), or what went wrong."""
    path = run.photos[source]
    try:
        if not path.is_file():
            raise ImageError(f"{path} is no file: a pipe, a device or a link to nothing")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return sha256, None if run.records.done(source, sha256) else read_photo(path).pixels, ""
    except (ImageError, OSError) as error:
        return "", None, str(error)


def _process(run: _Run, pixels: np.ndarray, source: str, sha256: str) -> PhotoRecord:
    try:
        return process_photo(pixels, source, sha256, run.dst, run.options, run.device, run.embed)
    except ImageError as error:
        return PhotoRecord(source, sha256, error=str(error))
    except OSError as error:
        if error.errno not in BAD_NAME:
            raise
        return PhotoRecord(source, sha256, error=f"its faces cannot be written: {error.strerror}")


def _remove_unlisted(dst: Path, listed: set[str]) -> None:
    """Delete face files of photos that are gone or changed, of duplicates, and what a kill left."""
    own = re.compile(r".+-[0-9a-f]{8}-\d+(\.\d+\.partial)?\.(png|jpg)")
    for file in (dst / "faces").rglob("*"):
        if own.fullmatch(file.name) and file.relative_to(dst).as_posix() not in listed:
            file.unlink()
