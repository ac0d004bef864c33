"""From one photo to its aligned training faces, with what is needed to judge them."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osdface_core.errors import ConfigError
from osdface_core.faces import CROP_SIZE, Face, align, detect
from osdface_core.faces.sharpness import sharpness
from osdface_core.files import replacing, shorten
from osdface_core.images import from_unit
from osdface_core.options import DetectorName

from .similarity import perceptual_hash

MultiFaces = Literal["all", "largest", "skip"]
FaceFormat = Literal["png", "jpg"]
NAME_BYTES = 200  # of a photo's name in its faces' names; disks take 255


@dataclass(frozen=True)
class PrepareOptions:
    """What decides about a single photo; changing any of it processes all photos again.

    Args:
        detector, detector_dir: see `osdface_core.detect`.
        min_face: smallest longer side of the face box [px].
        min_sharpness: see `osdface_core.faces.sharpness`: about 0.45 for a good 512 px face, 0.25 for
            one enlarged from 256 px, 0.1 for one enlarged four times.
        min_coverage: smallest share of the crop that lies inside the photo; the rest is mirrored filler.
        multi_faces: take "all" faces of a photo, the "largest", or "skip" photos with several.
        size: side of the written faces [px].
        format: "png", or "jpg" at quality 95.
    """

    detector: DetectorName = "auto"
    detector_dir: str | None = None
    min_face: float = 128
    min_sharpness: float = 0.2
    min_coverage: float = 0.8
    multi_faces: MultiFaces = "all"
    size: int = CROP_SIZE
    format: FaceFormat = "png"

    def __post_init__(self) -> None:
        if self.size < 64:
            raise ConfigError(f"size is {self.size} px, expected at least 64")


@dataclass(frozen=True)
class FaceRecord:
    """One accepted face. `file` is relative to the target; `size` is the crop's side in the photo [px]."""

    file: str
    sha256: str
    box: tuple[float, ...]
    landmarks: tuple[tuple[float, float], ...]
    score: float
    size: int
    sharpness: float
    coverage: float
    look: str
    embedding: str = ""


@dataclass(frozen=True)
class PhotoRecord:
    """What became of one photo: its accepted faces, why others were left out, or why it could not be read."""

    source: str
    sha256: str
    faces: tuple[FaceRecord, ...] = ()
    rejected: tuple[str, ...] = ()
    error: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PhotoRecord":
        """Invert `asdict`; raises KeyError or TypeError for something else."""
        faces = tuple(FaceRecord(**face) for face in values["faces"])
        rejected = tuple(values["rejected"])
        return cls(values["source"], values["sha256"], faces, rejected, values["error"])


Embed = Callable[[Tensor], Tensor]


def process_photo(
    pixels: np.ndarray,
    source: str,
    sha256: str,
    target: Path,
    options: PrepareOptions,
    device: torch.device | str | None = None,
    embed: Embed | None = None,
) -> PhotoRecord:
    """Detect, align, filter and write the faces of one photo.

    Args:
        pixels: (H, W, 3) array of uint8, uint16 or float32, upright.
        source: the photo's path relative to the source folder, "/" between folders; names the face files.
        target: folder to write below.
        embed: faces (N, 3, S, S) unit → (N, D) unit vectors, for grouping by person.
    Raises:
        DetectorError: the detector or its weights are missing. ImageError: the photo cannot be processed.
    """
    found = detect(
        pixels,
        options.detector,
        detector_dir=options.detector_dir,
        device=device,
        min_face=options.min_face / 2,
    )
    if not found:
        return PhotoRecord(source, sha256, rejected=("no face",))
    kept, rejected = _choose(found, pixels.shape[:2], options)
    if not kept:
        return PhotoRecord(source, sha256, rejected=tuple(rejected))
    crops = align(pixels, kept, options.size, device=device).clamp(0, 1)
    sharp = sharpness(crops).tolist()
    good = [i for i, value in enumerate(sharp) if value >= options.min_sharpness]
    rejected += ["blurry"] * (len(kept) - len(good))
    if not good:
        return PhotoRecord(source, sha256, rejected=tuple(rejected))
    crops = crops[good]
    looks = perceptual_hash(crops)
    vectors = [_encode(v) for v in embed(crops).cpu()] if embed else [""] * len(good)
    records = []
    for number, (index, crop) in enumerate(zip(good, crops, strict=True)):
        face = kept[index]
        name = _face_name(source, sha256, number, options.format)
        digest = _write(target / name, crop)
        records.append(
            FaceRecord(
                name,
                digest,
                face.box,
                face.landmarks,
                round(face.score, 4),
                _native_side(face),
                round(sharp[index], 4),
                round(_coverage(face, pixels.shape[:2]), 3),
                looks[number],
                vectors[number],
            )
        )
    return PhotoRecord(source, sha256, tuple(records), tuple(rejected))


def _choose(
    found: Sequence[Face], shape: tuple[int, int], options: PrepareOptions
) -> tuple[list[Face], list[str]]:
    """Choose faces that are large enough and inside the photo, largest first, by the policy for several."""
    rejected: list[str] = []
    large = []
    for face in sorted(found, key=lambda face: -face.size):
        if face.size < options.min_face:
            rejected.append("too small")
        elif _coverage(face, shape) < options.min_coverage:
            rejected.append("beyond the border")
        else:
            large.append(face)
    if options.multi_faces == "skip" and len(large) > 1:
        return [], [*rejected, *["several faces"] * len(large)]
    if options.multi_faces == "largest":
        return large[:1], [*rejected, *["not the largest"] * (len(large) - 1)]
    return large, rejected


def _native_side(face: Face) -> int:
    """Measure the side of the aligned crop in photo pixels."""
    return round(CROP_SIZE / float(np.sqrt(abs(np.linalg.det(face.matrix[:, :2])))))


def _coverage(face: Face, shape: tuple[int, int]) -> float:
    """Measure the share of the aligned crop that lies inside the photo, on a grid of 32 × 32 points."""
    line = (np.arange(32) + 0.5) * CROP_SIZE / 32 - 0.5
    crop = np.stack([axis.ravel() for axis in np.meshgrid(line, line)])
    x, y = np.linalg.solve(face.matrix[:, :2], crop - face.matrix[:, 2:])
    return float(((x >= -0.5) & (x < shape[1] - 0.5) & (y >= -0.5) & (y < shape[0] - 0.5)).mean())


def _face_name(source: str, sha256: str, number: int, suffix: str) -> str:
    """Name a face by content: `a.jpg` and `a.png`, or an edited photo under its old name, do not collide.

    Always UTF-8 and short enough for a disk, whatever the photo is called.
    """
    path = Path(source)
    folders = (shorten(part, NAME_BYTES) for part in path.parent.parts)
    name = f"{shorten(path.stem, NAME_BYTES)}-{sha256[:8]}-{number}.{suffix}"
    return Path("faces", *folders, name).as_posix()


def _write(path: Path, crop: Tensor) -> str:
    """Write a (3, S, S) unit face whole or not at all; returns the sha256 of the file."""
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    with replacing(path) as temporary:
        Image.fromarray(from_unit(crop, np.uint8)).save(temporary, **options)
        return hashlib.sha256(temporary.read_bytes()).hexdigest()


def _encode(vector: Tensor) -> str:
    return base64.b64encode(vector.to(torch.float16).numpy().tobytes()).decode()


def decode_embedding(text: str) -> Tensor:
    """Decode the vector behind `FaceRecord.embedding`: (D,) float32."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float16).astype(np.float32))
