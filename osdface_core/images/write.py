"""Write photo files with their depth and metadata; a failure leaves the old file as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ..errors import ImageError
from ..files import replacing
from . import exif, high_depth
from .photo import FULL_SCALE, Photo

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
}
"""Formats that are written, by file suffix."""
DEPTHS = {"PNG": ("uint8", "uint16"), "TIFF": ("uint8", "uint16", "float32")}
"""Sample types of the formats that hold more than 8 bits, in rising order."""
WITH_ALPHA = ("PNG", "TIFF", "WEBP")


def write_photo(path: str | Path, photo: Photo, *, quality: int = 95) -> None:
    """Write a photo in the format that the suffix names, with its profile, EXIF, XMP and resolution.

    PNG and TIFF keep the bit depth (a float photo becomes 16-bit in PNG); the other formats hold 8 bits, to
    which deeper photos are rounded. JPEG is written without chroma subsampling, WebP without loss if the
    photo came without. A grey photo stays a one-channel file while its channels are equal.

    Args:
        path: the folder is made if needed; an existing file is replaced once the new one is complete.
        quality: of JPEG and lossy WebP, 1 to 100.
    Raises:
        ImageError: one line: unknown suffix, alpha that the format cannot hold, or a failed write (then
            nothing was replaced).
    """
    path = Path(path).expanduser()
    kind = file_format(path, photo)
    plane = to_depth(photo, kind)
    if plane.alpha is not None and kind not in WITH_ALPHA:
        if not bool((plane.alpha == np.max(full_alpha(plane.alpha))).all()):
            raise ImageError(
                f"{path}: {kind} cannot hold the photo's transparency; write a .png, .tif or .webp"
            )
        plane = high_depth.Plane(plane.samples, None)
    try:
        with replacing(path) as temporary:
            _write(temporary, photo, plane, kind, quality)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(
            f"{path} cannot be written ({reason}): free space or choose another folder"
        ) from error
    except (ValueError, RuntimeError, MemoryError) as error:  # encoders: size limits, oversized metadata
        raise ImageError(f"{path} cannot be written as {kind} ({error}): choose another format") from error


def file_format(path: Path, photo: Photo) -> str:
    """The format for a path: by its suffix, or the photo's own where there is none."""
    if not path.suffix and photo.format in SUFFIXES.values():
        return photo.format
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(dict.fromkeys(suffix for suffix in SUFFIXES))
        raise ImageError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use one of {known}")
    return kind


def to_depth(photo: Photo, kind: str) -> high_depth.Plane:
    """Samples as (H, W, 1 or 3), in the photo's type or the deepest one below it that the format holds."""
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
    alpha = None if alpha is None else convert(alpha, target)
    return high_depth.Plane(convert(samples, target), alpha, photo.premultiplied)


def convert(array: np.ndarray, target: np.dtype[Any]) -> np.ndarray:
    """Change the sample type at equal brightness; integers are rounded, and cut at their range."""
    if array.dtype == target:
        return array
    scaled = array.astype(np.float32) * np.float32(FULL_SCALE[str(target)] / FULL_SCALE[str(array.dtype)])
    if target.kind == "f":
        return scaled.astype(target)
    return np.clip(np.rint(scaled), 0, FULL_SCALE[str(target)]).astype(target)


def full_alpha(alpha: np.ndarray) -> np.ndarray:
    """The value that means opaque, in alpha's type."""
    return np.array(FULL_SCALE[str(alpha.dtype)], dtype=alpha.dtype)


def fitting_icc(icc: bytes | None, channels: int) -> bytes | None:
    """The profile if it is one for this number of colour channels (ICC.1, header bytes 16 to 19)."""
    space = (icc or b"")[16:20]
    return icc if space == (b"GRAY" if channels == 1 else b"RGB ") else None


def _write(path: Path, photo: Photo, plane: high_depth.Plane, kind: str, quality: int) -> None:
    icc = fitting_icc(photo.icc, plane.samples.shape[2])
    if kind == "TIFF":
        order = exif.byte_order((photo.exif or b"").removeprefix(exif.PREFIX)) or "<"
        high_depth.write_tiff(path, plane, icc=icc, xmp=photo.xmp, dpi=photo.dpi, order=order)
        if photo.exif:
            exif.into_tiff(path, photo.exif)
    elif plane.samples.dtype == np.uint16:
        samples = plane.samples
        if plane.alpha is not None:
            samples = np.concatenate((samples, plane.alpha[..., None]), axis=2)
        chunks = high_depth.png_chunks(icc, photo.exif, photo.xmp, photo.dpi, photo.text)
        path.write_bytes(high_depth.encode_png(samples, chunks))
    else:
        _write_pillow(path, photo, plane, kind, quality, icc)


def _write_pillow(
    path: Path, photo: Photo, plane: high_depth.Plane, kind: str, quality: int, icc: bytes | None
) -> None:
    samples = plane.samples
    if plane.alpha is not None:
        samples = np.concatenate((samples, plane.alpha[..., None]), axis=2)
    picture = Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))
    options: dict[str, Any] = {
        "PNG": {"compress_level": 4},
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"lossless": photo.lossless, "exact": True, "quality": 80 if photo.lossless else quality},
    }.get(kind, {})
    if kind in ("PNG", "JPEG", "WEBP"):
        options |= {"icc_profile": icc, "exif": photo.exif or b""}
        options |= {"xmp": photo.xmp} if photo.xmp and kind != "PNG" else {}
    if photo.dpi and kind in ("PNG", "JPEG", "BMP"):
        options["dpi"] = photo.dpi
    if kind == "PNG":
        options["pnginfo"] = _png_text(photo)
    with path.open("wb") as file:
        picture.save(file, kind, **options)


def _png_text(photo: Photo) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in photo.text.items():
        info.add_itxt(key, value)
    if photo.xmp:
        info.add_itxt("XML:com.adobe.xmp", photo.xmp.decode("utf-8", "replace"))
    return info
