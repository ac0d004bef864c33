"""Write photo files with their depth and metadata; a failure leaves the old file as it was."""

from __future__ import annotations

import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..files import replacing
from . import exif, icc, jpeg, png, tiff, xmp
from .formats import SUFFIXES
from .metadata import Metadata
from .photo import FULL_SCALE, Photo
from .plane import Plane

DEPTHS = {"PNG": ("uint8", "uint16"), "TIFF": ("uint8", "uint16", "float32")}
"""Sample types of the formats that hold more than 8 bits, in rising order."""
WITH_ALPHA = ("PNG", "TIFF", "WEBP")
HOLDS = {
    "PNG": ("icc", "exif", "xmp", "text", "photoshop", "comments", "chunks"),
    "JPEG": ("icc", "exif", "xmp", "photoshop", "comments"),
    "TIFF": ("icc", "exif", "xmp", "photoshop"),
    "WEBP": ("icc", "exif", "xmp"),
}
"""Metadata that each format has a place for; the others have none."""
LONGEST = {"JPEG": 65500, "WEBP": 16383}
"""Pixels of the longer side that an encoder takes."""
RESOLUTIONS = (0.1, 65000.0)
"""Dots per inch that every format can store."""
NAMES = {
    "icc": "colour profile",
    "exif": "EXIF",
    "xmp": "XMP",
    "text": "text",
    "photoshop": "IPTC",
    "comments": "comment",
    "chunks": "other chunks",
}


def write_photo(path: str | Path, photo: Photo | np.ndarray, *, quality: int = 95) -> tuple[str, ...]:
    """Write a photo in the format that the suffix names, with all metadata that the format holds.

    PNG and TIFF keep the bit depth (a float photo becomes 16-bit in PNG); the other formats hold 8 bits, to
    which deeper photos are rounded. JPEG is written without chroma subsampling, WebP without loss if the
    photo came without. A grey photo stays a one-channel file while its channels are equal. PNG's colour
    description becomes a profile in JPEG, WebP and TIFF.

    Args:
        path: the folder is made if needed; an existing file is replaced once the new one is complete.
        photo: as `read_photo` gives it, or pixels alone, (H, W, 3) uint8, uint16 or float32.
        quality: of JPEG and lossy WebP, 1 to 100.
    Returns:
        metadata that the format cannot hold and which is left out, a line each.
    Raises:
        ImageError: one line: unknown suffix, alpha or a size that the format cannot hold, or a failed write
            (then nothing was replaced).
    """
    path = Path(path).expanduser()
    photo = Photo(photo) if isinstance(photo, np.ndarray) else photo
    kind = file_format(path, photo)
    check_alpha(path, photo)
    longest = max(photo.pixels.shape[:2])
    if longest > LONGEST.get(kind, longest):
        raise ImageError(
            f"{path}: {kind} holds at most {LONGEST[kind]} px a side, not {longest}: choose another format"
        )
    plane = to_depth(photo, kind)
    about = _fitting(photo, kind, plane)
    try:
        with replacing(path) as temporary:
            _write(temporary, plane, about, kind, quality, lossless=photo.lossless)
            return tuple(about.notes)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(
            f"{path} cannot be written ({reason}): free space or choose another folder"
        ) from error
    except (ValueError, RuntimeError, MemoryError) as error:  # encoders: size limits, oversized metadata
        raise ImageError(
            f"{path} cannot be written as {kind} ({str(error).strip()[:200]}): choose another format"
        ) from error


def check_alpha(path: Path, photo: Photo) -> None:
    """Refuse a path whose format cannot hold the photo's transparency.

    Raises:
        ImageError: one line, also for a suffix that is not written.
    """
    kind = file_format(path, photo)
    alpha = photo.alpha
    if alpha is not None and kind not in WITH_ALPHA and (alpha != FULL_SCALE[str(alpha.dtype)]).any():
        raise ImageError(f"{path}: {kind} cannot hold the photo's transparency; write a .png, .tif or .webp")


def file_format(path: Path, photo: Photo) -> str:
    """Choose a path's format: by its suffix; without one the photo's own, or PNG if that is only read."""
    if not path.suffix:
        return photo.format if photo.format in SUFFIXES.values() else "PNG"
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ImageError(f"{path}: cannot write {path.suffix}; use one of {', '.join(SUFFIXES)}")
    return kind


def to_depth(photo: Photo, kind: str) -> Plane:
    """Convert samples to (H, W, 1 or 3), in the photo's type or the deepest that the format holds."""
    pixels, alpha = photo.pixels, photo.alpha
    if pixels.ndim != 3 or pixels.shape[2] != 3 or str(pixels.dtype) not in FULL_SCALE:
        raise ImageError(
            f"cannot write pixels of shape {pixels.shape}, {pixels.dtype}: "
            "expected (H, W, 3) uint8, uint16 or float32"
        )
    allowed = DEPTHS.get(kind, ("uint8",))
    own = "float32" if pixels.dtype.kind == "f" else str(pixels.dtype)
    target = np.dtype(own if own in allowed else allowed[-1])
    equal = photo.grey and kind != "WEBP" and bool((pixels == pixels[..., :1]).all())
    samples = pixels[..., :1] if equal else pixels
    alpha = None if alpha is None or kind not in WITH_ALPHA else convert(alpha, target)
    return Plane(convert(samples, target), alpha, photo.premultiplied)


def convert(array: np.ndarray, target: np.dtype[Any]) -> np.ndarray:
    """Change the sample type at equal brightness; integers are rounded, and cut at their range."""
    if array.dtype == target:
        return array
    scaled = array.astype(np.float32) * np.float32(FULL_SCALE[str(target)] / FULL_SCALE[str(array.dtype)])
    if target.kind == "f":
        return scaled.astype(target)
    return np.clip(np.rint(scaled), 0, FULL_SCALE[str(target)]).astype(target)


def _fitting(photo: Photo, kind: str, plane: Plane) -> Metadata:
    """The photo's metadata as far as a format holds it; its notes name the rest."""
    about = Metadata(**{one.name: getattr(photo, one.name) for one in fields(Metadata)})
    about.notes = []
    channels = plane.samples.shape[2]
    if kind != "PNG":
        about.icc, note = icc.from_chunks(about, grey=channels == 1)
        about.notes += [note] if note else []
        about.chunks = tuple(chunk for chunk in about.chunks if chunk[0] not in png.COLOR)
    space = b"GRAY" if channels == 1 else b"RGB "
    if about.icc and about.icc[16:20] != space:  # ICC.1, header
        about.notes.append("its colour profile does not fit its channels and is left out")
        about.icc = None
    names = NAMES | {"text": f"text ({', '.join(about.text)})"}
    lost = [name for key, name in names.items() if getattr(about, key) and key not in HOLDS.get(kind, ())]
    if lost:
        about.notes.append(f"{kind} cannot hold its {', '.join(lost)}")
    if about.dpi and not all(RESOLUTIONS[0] <= value <= RESOLUTIONS[1] for value in about.dpi):
        about.notes.append("its resolution is out of range and left out")
        about.dpi = None
    height, width = plane.samples.shape[:2]
    about.exif = exif.with_size(about.exif, width, height)
    about.xmp = xmp.with_size(about.xmp, width, height)
    return about


def _write(path: Path, plane: Plane, about: Metadata, kind: str, quality: int, *, lossless: bool) -> None:
    if kind == "TIFF":
        tiff.write(path, plane, about)
        return
    samples = plane.joined()
    if samples.dtype == np.uint16:
        path.write_bytes(png.encode(samples, png.metadata_chunks(about)))
        return
    picture = Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))
    if kind == "PNG":
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=4)
        with path.open("wb") as file:
            file.writelines(png.with_chunks(buffer.getbuffer(), png.metadata_chunks(about)))
        return
    options: dict[str, Any] = {}
    if kind == "JPEG":
        options = {"quality": quality, "subsampling": 0, "extra": jpeg.segments(about)}
    elif kind == "WEBP":
        options = {"lossless": lossless, "exact": True, "quality": 80 if lossless else quality}
        options |= {"icc_profile": about.icc, "exif": about.exif or b"", "xmp": about.xmp or b""}
    if about.dpi and kind in ("JPEG", "BMP"):
        options["dpi"] = about.dpi
    with path.open("wb") as file:
        picture.save(file, kind, **options)
