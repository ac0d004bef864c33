"""16-bit and float pictures, which Pillow cuts to 8 bits: PNG by imagecodecs, TIFF by tifffile."""

from __future__ import annotations

import importlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import ImageError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PREMULTIPLIED, STRAIGHT = 1, 2
"""TIFF's names for the two kinds of transparency."""


@dataclass(frozen=True)
class Plane:
    """Decoded samples of a file.

    Attributes:
        samples: (H, W, C) in the file's own type; C is 1 or 3.
        alpha: (H, W), or None.
        premultiplied: whether colours were multiplied by alpha.
    """

    samples: np.ndarray
    alpha: np.ndarray | None
    premultiplied: bool = False


def _library(name: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImageError(f"{kind} needs the package {name}: run `pip install {name}`") from error


def is_deep_png(head: bytes) -> bool:
    """Whether a file's first 32 bytes are those of a PNG with 16 bits per sample."""
    return head.startswith(PNG_MAGIC) and len(head) > 24 and head[24] == 16


def read_png(path: Path) -> Plane:
    """A 16-bit PNG of any colour type."""
    codecs = _library("imagecodecs", "a 16-bit PNG")
    try:
        data = codecs.png_decode(path.read_bytes())
    except (RuntimeError, ValueError) as error:
        raise ImageError(f"{path} cannot be read ({error}): the file is damaged or incomplete") from error
    data = data[..., None] if data.ndim == 2 else data
    color = 3 if data.shape[2] >= 3 else 1
    return Plane(data[..., :color], data[..., color] if data.shape[2] > color else None)


def encode_png(samples: np.ndarray, chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A 16-bit PNG of (H, W, 1 to 4) uint16 samples, with metadata chunks put behind its header."""
    codecs = _library("imagecodecs", "a 16-bit PNG")
    # A fresh array: the encoder looks at strides, which a view of one row or column may have odd ones of.
    pixels = np.empty(samples.shape[:2] if samples.shape[2] == 1 else samples.shape, np.uint16)
    pixels[...] = samples[..., 0] if samples.shape[2] == 1 else samples
    data = codecs.png_encode(pixels, level=6)
    header = len(PNG_MAGIC) + 25
    return data[:header] + b"".join(_chunk(kind, body) for kind, body in chunks) + data[header:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
    dpi: tuple[float, float] | None,
    text: dict[str, str],
) -> list[tuple[bytes, bytes]]:
    """Metadata as PNG chunks (PNG specification 1.5 and its eXIf extension)."""
    chunks = []
    if icc:
        chunks.append((b"iCCP", b"ICC profile\x00\x00" + zlib.compress(icc)))
    if dpi:
        meter = [round(value / 0.0254) for value in dpi]
        chunks.append((b"pHYs", struct.pack(">IIB", *meter, 1)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\x00\x00")))
    if xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + xmp))
    for key, value in text.items():
        name = key.encode("latin-1", "replace")[:79] or b"Comment"
        chunks.append((b"iTXt", name + b"\x00\x00\x00\x00\x00" + value.encode()))
    return chunks


@dataclass(frozen=True)
class TiffPicture:
    """A TIFF that tifffile reads: samples and metadata."""

    plane: Plane
    icc: bytes | None
    xmp: bytes | None
    dpi: tuple[float, float] | None


def read_tiff(path: Path, largest: int) -> TiffPicture | None:
    """A grey or RGB TIFF of 8 or 16 bits or float, or None if Pillow should read it (palette, CMYK, YCbCr).

    Args:
        largest: most pixels that are allowed.
    """
    tifffile = _library("tifffile", "a TIFF")
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            full = [p for p in file.pages if p.shape == page.shape and not p.is_reduced]
            if len(full) > 1:
                raise ImageError(
                    f"{path} holds {len(full)} pages: export the page to restore as its own file"
                )
            if page.imagewidth * page.imagelength > largest:
                raise ImageError(
                    f"{path} has {page.imagewidth}x{page.imagelength} px: at most {largest} in all"
                )
            if int(page.photometric) not in (0, 1, 2) or page.imagedepth != 1:
                _refuse_deep(page, path)
                return None
            if page.dtype is None or str(page.dtype) not in (
                "uint8",
                "uint16",
                "float16",
                "float32",
                "float64",
            ):
                raise ImageError(
                    f"{path} holds {page.dtype} samples: expected 8 or 16 bits or float; convert it"
                )
            data = page.asarray()
            return TiffPicture(
                _tiff_plane(page, data, path), _bytes(page, 34675), _bytes(page, 700), _dpi(page)
            )
    except ImageError:
        raise
    except Exception as error:  # tifffile and its codecs raise many kinds for damaged files
        raise ImageError(
            f"{path} cannot be read ({_brief(error)}): the file is damaged or incomplete"
        ) from error


def _refuse_deep(page: Any, path: Path) -> None:
    if page.dtype is not None and str(page.dtype) != "uint8":
        raise ImageError(
            f"{path} is a {page.dtype} TIFF in {page.photometric.name}: convert it to RGB or grey"
        )


def _tiff_plane(page: Any, data: np.ndarray, path: Path) -> Plane:
    if page.samplesperpixel == 1:
        data = data[..., None]
    elif int(page.planarconfig) == 2:
        data = np.moveaxis(data, 0, -1)
    color = 3 if int(page.photometric) == 2 else 1
    extra = [int(kind) for kind in page.extrasamples]
    if data.ndim != 3 or data.shape[2] - color not in (0, 1):
        raise ImageError(
            f"{path} has {page.samplesperpixel} channels: expected grey or RGB, with or without alpha"
        )
    samples, alpha = data[..., :color], data[..., color] if data.shape[2] > color else None
    if int(page.photometric) == 0:  # white is zero
        samples = 1 - samples if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max - samples
    return Plane(samples, alpha, premultiplied=bool(extra) and extra[0] == PREMULTIPLIED)


def write_tiff(
    path: Path,
    plane: Plane,
    *,
    icc: bytes | None,
    xmp: bytes | None,
    dpi: tuple[float, float] | None,
    order: str,
) -> None:
    """A deflate-compressed TIFF of (H, W, 1 or 3) samples.

    Args:
        order: byte order, "<" or ">": that of the EXIF block which is to be added.
    """
    tifffile = _library("tifffile", "a TIFF")
    samples, options = plane.samples, {}
    if plane.alpha is not None:
        samples = np.concatenate((samples, plane.alpha[..., None]), axis=2)
        options["extrasamples"] = [PREMULTIPLIED if plane.premultiplied else STRAIGHT]
    if dpi:
        options |= {"resolution": dpi, "resolutionunit": 2}
    tifffile.imwrite(
        path,
        samples[..., 0] if samples.shape[2] == 1 else samples,
        byteorder=order,
        photometric="rgb" if plane.samples.shape[2] == 3 else "minisblack",
        planarconfig="contig" if samples.shape[2] > 1 else None,
        compression="zlib",
        predictor=True,
        rowsperstrip=max(1, 2**20 // max(1, samples[:1].nbytes)),
        iccprofile=icc,
        extratags=[(700, 1, len(xmp), xmp, True)] if xmp else [],
        metadata=None,
        software=False,
        **options,
    )


def _bytes(page: Any, code: int) -> bytes | None:
    tag = page.tags.get(code)
    value = tag.value if tag is not None else None
    if isinstance(value, tuple):
        value = bytes(value)
    return value if isinstance(value, bytes) and value else None


def _dpi(page: Any) -> tuple[float, float] | None:
    if 282 not in page.tags or 283 not in page.tags:
        return None
    unit = page.tags.get(296)
    (xn, xd), (yn, yd) = page.tags[282].value, page.tags[283].value
    kind = 2 if unit is None else int(unit.value)
    if kind not in (2, 3) or not all((xn, xd, yn, yd)):
        return None
    scale = 2.54 if kind == 3 else 1.0
    return xn / xd * scale, yn / yd * scale


def _brief(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:120] or type(error).__name__
