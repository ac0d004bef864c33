"""TIFF files: their pages and side notes, samples of up to 32 bits, and a writer.

Pillow reads 8 bits; deeper samples are read by tifffile, an optional package.
Source: TIFF 6.0, BigTIFF, Adobe Photoshop TIFF Technical Notes (2002).
"""

from __future__ import annotations

import importlib.util
import io
import logging
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..errors import ImageError
from . import exif, photoshop
from .exif import Entry
from .metadata import Metadata
from .plane import Plane, check_size, from_pillow, split_alpha

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
SUBFILE, WIDTH, HEIGHT, BITS, FORMAT = 254, 256, 257, 258, 339
XMP, IPTC, PHOTOSHOP, ICC, DNG, SUB_IFDS = 700, 33723, 34377, 34675, 50706, 330
REDUCED = 1
PREMULTIPLIED, STRAIGHT = 1, 2
"""TIFF's names for the two kinds of transparency."""
DESCRIPTIVE = frozenset(
    (
        *(269, 270, 271, 272, 285, 305, 306, 315, 316, 33432),  # title, camera, software, date, rights
        *(18246, 18249, *range(40091, 40096)),  # rating, Windows' own
        *(33550, 33922, 34264, 34735, 34736, 34737),  # place on a map
        *(exif.EXIF, exif.GPS),
    )
)
"""Tags of the first directory that tell about the picture rather than about how its pixels are stored."""
SAMPLES = ("uint8", "uint16", "float16", "float32", "float64")
STRIP = 1 << 20
"""Bytes that are compressed at once."""
LARGEST_FILE = 2**32 - 2**20

Fields = dict[int, Entry]


def read(path: Path) -> tuple[Plane, Metadata]:
    """Decode the samples and metadata of a TIFF with one page.

    Raises:
        ImageError: several pages, too large, or samples that no installed package decodes.
        ValueError: a damaged directory; decoders raise kinds of their own for damaged pixels.
    """
    with path.open("rb") as file:
        order, pages = _pages(file)
    if not pages:
        raise ValueError("no directory")
    first = pages[0]
    _refuse_several(order, pages)
    check_size(_number(first, WIDTH, order), _number(first, HEIGHT, order))
    about = _metadata(first, order)
    if len(pages) > 1 or SUB_IFDS in first:
        about.notes.append("its reduced pictures (thumbnail or pyramid) are left out")
    bits = max((*first[BITS].numbers(order), 0)) if BITS in first else 1
    plane = _by_tifffile(path) if _has_tifffile() else None
    if plane is None and bits > 8:
        known, missing = "expected 8, 16 or 32: export it so", 'which needs: pip install "osdface[tiff]"'
        raise ImageError(f"is a TIFF of {bits} bits, {known if _has_tifffile() else missing}")
    return plane or _by_pillow(path, about), about


def _pages(file: BinaryIO) -> tuple[str, list[Fields]]:
    """Byte order and directories of a TIFF; a chain that turns back on itself ends."""

    @exif.metered
    def read_at(place: int, size: int) -> bytes:
        if place >= end:  # also what no seek can reach
            return b""
        file.seek(place)
        return file.read(size)

    end = file.seek(0, io.SEEK_END)
    head = exif.header(read_at(0, 16))
    pages, seen = [], {0}
    place = head.first if head else 0
    while head and place not in seen and len(pages) < 1000:
        seen.add(place)
        found = exif.parse(read_at, place, head)
        pages += [{entry.tag: entry for entry in found.entries}] if found.entries else []
        place = found.next
    return head.order if head else "<", pages


def _number(fields: Fields, tag: int, order: str, default: int = 0) -> int:
    return next(iter(fields[tag].numbers(order)), default) if tag in fields else default


def _refuse_several(order: str, pages: list[Fields]) -> None:
    kinds = [_number(page, SUBFILE, order) for page in pages]
    if DNG in pages[0] or kinds[0] & REDUCED:
        raise ImageError("is a camera's raw file with a preview: develop it to TIFF or PNG first")
    full = sum(not kind & REDUCED for kind in kinds)
    if full > 1:
        raise ImageError(f"holds {full} pages: export the page to restore as its own file")


def _metadata(first: Fields, order: str) -> Metadata:
    kept = [entry for tag, entry in first.items() if tag in DESCRIPTIVE or tag == exif.ORIENTATION]
    resources = first[PHOTOSHOP].data if PHOTOSHOP in first else b""
    resources = photoshop.from_block(resources) or b""
    if IPTC in first and photoshop.iptc(resources) is None:
        resources += photoshop.resource(photoshop.IPTC, first[IPTC].data)
    return Metadata(
        icc=first[ICC].data if ICC in first else None,
        exif=exif.pack(kept, order) if kept else None,
        xmp=first[XMP].data if XMP in first else None,
        dpi=dpi(first, order),
        photoshop=resources or None,
    )


def dpi(fields: Fields, order: str) -> tuple[float, float] | None:
    """Read the resolution of a directory (tags 282, 283, 296) per inch, or None."""
    scale = {2: 1.0, 3: 2.54}.get(_number(fields, 296, order, 2))
    values = [
        struct.unpack(order + "II", fields[tag].data[:8])
        for tag in (282, 283)
        if tag in fields and fields[tag].kind == 5
    ]
    if scale is None or len(values) != 2 or not all(map(all, values)):
        return None
    (xn, xd), (yn, yd) = values
    return xn / xd * scale, yn / yd * scale


def _has_tifffile() -> bool:
    """Whether both packages of the extra are here: tifffile alone cannot unpack most kinds."""
    return all(importlib.util.find_spec(name) for name in ("tifffile", "imagecodecs"))


def _by_tifffile(path: Path) -> Plane | None:
    """A grey or RGB TIFF of 8 or 16 bits or float; None if Pillow should read it (palette, CMYK, YCbCr)."""
    import tifffile

    log = logging.getLogger("tifffile")
    if not log.handlers:  # what it says of damaged tags would go to stderr, beside our one line
        log.addHandler(logging.NullHandler())
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        kind = str(page.dtype)
        if int(page.photometric) not in (0, 1, 2) or page.imagedepth != 1:
            if page.dtype is not None and kind != "uint8":
                raise ImageError(f"is a {kind} TIFF in {page.photometric.name}: convert it to RGB or grey")
            return None
        if kind == "bool":
            return None
        if kind not in SAMPLES:
            raise ImageError(f"holds {kind} samples: expected 8 or 16 bits or float; convert it")
        return _plane(page, page.asarray())


def _plane(page: Any, data: np.ndarray) -> Plane:
    if page.samplesperpixel == 1:
        data = data[..., None]
    elif int(page.planarconfig) == 2:
        data = np.moveaxis(data, 0, -1)
    color = 3 if int(page.photometric) == 2 else 1
    if data.ndim != 3 or data.shape[2] - color not in (0, 1):
        raise ImageError(f"has {page.samplesperpixel} channels: expected grey or RGB, with or without alpha")
    if int(page.photometric) == 0:  # white is zero; alpha is not turned
        full = 1 if data.dtype.kind == "f" else np.iinfo(data.dtype).max
        data = np.concatenate((full - data[..., :1], data[..., 1:]), axis=2)
    return split_alpha(data, premultiplied=tuple(map(int, page.extrasamples))[:1] == (PREMULTIPLIED,))


def _by_pillow(path: Path, about: Metadata) -> Plane:
    # Pillow turns TIFFs itself, and wrongly where they are not RGB: it gets the file saying upright.
    with Image.open(io.BytesIO(exif.reset_orientation(path.read_bytes()) or b"")) as image:
        check_size(image.width, image.height)
        image.load()
        return from_pillow(image, about)


def write(path: Path, plane: Plane, about: Metadata) -> None:
    """Write a deflate-compressed TIFF of (H, W, 1 or 3) samples in the byte order of its EXIF block.

    Raises:
        ValueError: more than the 4 GB that a classic TIFF holds.
    """
    samples, order = plane.joined(), exif.byte_order(about.exif)
    rows = max(1, STRIP // samples[0].nbytes)
    places, sizes = [], []
    with path.open("wb") as file:
        file.write((b"II*\x00" if order == "<" else b"MM\x00*") + bytes(4))
        for strip in _strips(samples, rows, order):
            places.append(file.tell())
            sizes.append(file.write(strip))
            if file.tell() > LARGEST_FILE:
                raise ValueError("larger than 4 GB")
        base = file.tell() + file.tell() % 2
        file.write(bytes(base - file.tell()))
        entries = [*_structure(plane, samples, rows, places, sizes, order), *_described(about, order)]
        file.write(exif.serialise(entries, order, base))
        file.seek(4)
        file.write(struct.pack(order + "I", base))


def _strips(samples: np.ndarray, rows: int, order: str) -> Iterator[bytes]:
    """Differences between neighbours (TIFF 6.0 section 14; floats by technical note 3), compressed."""
    for top in range(0, len(samples), rows):
        block = np.ascontiguousarray(samples[top : top + rows])
        if block.dtype.kind == "f":
            height, width, channels = block.shape
            split = block.astype(">f4").view(np.uint8).reshape(height, width * channels, 4)
            block = split.transpose(0, 2, 1).reshape(height, -1, channels)
        rest = block.copy()
        rest[:, 1:] -= block[:, :-1]
        yield zlib.compress(rest.astype(f"{order}{rest.dtype.kind}{rest.itemsize}").tobytes(), 6)


def _structure(
    plane: Plane, samples: np.ndarray, rows: int, places: list[int], sizes: list[int], order: str
) -> list[Entry]:
    height, width, channels = samples.shape
    real = samples.dtype.kind == "f"
    short, long = 3, 4
    tags = [
        (WIDTH, long, width),
        (HEIGHT, long, height),
        (BITS, short, *[8 * samples.itemsize] * channels),
        (259, short, 8),  # deflate
        (262, short, 2 if plane.samples.shape[2] == 3 else 1),
        (273, long, *places),
        (277, short, channels),
        (278, long, rows),
        (279, long, *sizes),
        (284, short, 1),
        (317, short, 3 if real else 2),
        (FORMAT, short, *[3 if real else 1] * channels),
    ]
    if plane.alpha is not None:
        tags.append((338, short, PREMULTIPLIED if plane.premultiplied else STRAIGHT))
    return [exif.whole(order, *tag) for tag in tags]


def _described(about: Metadata, order: str) -> list[Entry]:
    entries = [entry for entry in exif.fields(about.exif) if entry.tag in DESCRIPTIVE]
    record = photoshop.iptc(about.photoshop)
    blocks = ((XMP, 1, about.xmp), (IPTC, 7, record), (PHOTOSHOP, 1, about.photoshop), (ICC, 7, about.icc))
    entries += [Entry(tag, kind, len(data), data) for tag, kind, data in blocks if data]
    if about.dpi:
        for tag, value in zip((282, 283), about.dpi, strict=True):
            ratio = Fraction(value).limit_denominator(10000)
            entries.append(Entry(tag, 5, 1, struct.pack(order + "II", ratio.numerator, ratio.denominator)))
        entries.append(exif.whole(order, 296, 3, 2))
    return entries
