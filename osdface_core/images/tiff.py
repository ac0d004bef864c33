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
from .plane import Plane, from_pillow

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


def read(path: Path, largest: int) -> tuple[Plane, Metadata]:
    """Decode the samples and metadata of a TIFF with one page.

    Args:
        largest: most pixels that are allowed.
    Raises:
        ImageError: damaged, several pages, too large, or samples that no installed package decodes.
    """
    with path.open("rb") as file:
        head, pages = _pages(file)
    if head is None or not pages:
        raise ImageError(f"{path} cannot be read (no directory): the file is damaged or incomplete")
    first = {entry.tag: entry for entry in pages[0]}
    _refuse_several(path, head.order, pages)
    if _number(first, WIDTH, head.order) * _number(first, HEIGHT, head.order) > largest:
        width, height = (_number(first, tag, head.order) for tag in (WIDTH, HEIGHT))
        raise ImageError(f"{path} has {width}x{height} px: at most {largest} in all")
    about = _metadata(first, head.order)
    if len(pages) > 1 or SUB_IFDS in first:
        about.notes.append("its reduced pictures (thumbnail or pyramid) are left out")
    bits = max((*first[BITS].numbers(head.order), 0)) if BITS in first else 1
    if _has_tifffile():
        plane = _by_tifffile(path)
    elif bits > 8:
        raise ImageError(f'{path} is a TIFF of {bits} bits, which needs: pip install "osdface[tiff]"')
    else:
        plane = None
    return plane or _by_pillow(path, largest, about), about


def _pages(file: BinaryIO) -> tuple[exif.Header | None, list[tuple[Entry, ...]]]:
    """The directories of a TIFF, in order; a chain that turns back on itself ends."""

    def read_at(place: int, size: int) -> bytes:
        file.seek(place)
        return file.read(size)

    head = exif.header(read_at(0, 16))
    pages, seen = [], set()
    place = head.first if head else 0
    while head and place and place not in seen and len(pages) < 1000:
        seen.add(place)
        entries = exif.parse(read_at, place, head.order, big=head.big)
        if not entries:
            break
        pages.append(entries)
        count = head.counter.unpack(read_at(place, head.counter.size))[0]
        link = read_at(place + head.counter.size + head.width * count, head.place.size)
        place = head.place.unpack(link)[0] if len(link) == head.place.size else 0
    return head, pages


def _number(fields: dict[int, Entry], tag: int, order: str, default: int = 0) -> int:
    return next(iter(fields[tag].numbers(order)), default) if tag in fields else default


def _refuse_several(path: Path, order: str, pages: list[tuple[Entry, ...]]) -> None:
    kinds = [_number({entry.tag: entry for entry in page}, SUBFILE, order) for page in pages]
    if any(entry.tag == DNG for entry in pages[0]) or kinds[0] & REDUCED:
        raise ImageError(f"{path} is a camera's raw file with a preview: develop it to TIFF or PNG first")
    full = sum(not kind & REDUCED for kind in kinds)
    if full > 1:
        raise ImageError(f"{path} holds {full} pages: export the page to restore as its own file")


def _metadata(first: dict[int, Entry], order: str) -> Metadata:
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


def dpi(fields: dict[int, Entry], order: str) -> tuple[float, float] | None:
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
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            if int(page.photometric) not in (0, 1, 2) or page.imagedepth != 1:
                _refuse_deep(page, path)
                return None
            if page.dtype is None or str(page.dtype) not in SAMPLES:
                if str(page.dtype) == "bool":
                    return None
                raise ImageError(
                    f"{path} holds {page.dtype} samples: expected 8 or 16 bits or float; convert it"
                )
            return _plane(page, page.asarray(), path)
    except ImageError:
        raise
    except Exception as error:  # tifffile and its codecs raise many kinds for damaged files
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise ImageError(f"{path} cannot be read ({reason}): the file is damaged or incomplete") from error


def _refuse_deep(page: Any, path: Path) -> None:
    if page.dtype is not None and str(page.dtype) != "uint8":
        raise ImageError(
            f"{path} is a {page.dtype} TIFF in {page.photometric.name}: convert it to RGB or grey"
        )


def _plane(page: Any, data: np.ndarray, path: Path) -> Plane:
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


def _by_pillow(path: Path, largest: int, about: Metadata) -> Plane:
    # Pillow turns TIFFs itself, and wrongly where they are not RGB: it gets the file saying upright.
    with Image.open(io.BytesIO(exif.reset_orientation(path.read_bytes()) or b"")) as image:
        if image.width * image.height > largest:
            raise Image.DecompressionBombError
        image.load()
        return from_pillow(image, about)


def write(path: Path, plane: Plane, about: Metadata) -> None:
    """Write a deflate-compressed TIFF of (H, W, 1 or 3) samples in the byte order of its EXIF block.

    Raises:
        ValueError: more than the 4 GB that a classic TIFF holds.
    """
    samples = plane.samples
    if plane.alpha is not None:
        samples = np.concatenate((samples, plane.alpha[..., None]), axis=2)
    order = exif.byte_order(about.exif)
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
    tags: dict[int, tuple[int, ...]] = {
        WIDTH: (width,),
        HEIGHT: (height,),
        273: tuple(places),
        278: (rows,),
        279: tuple(sizes),
    }
    small = {
        BITS: (8 * samples.itemsize,) * channels,
        259: (8,),  # deflate
        262: (2 if plane.samples.shape[2] == 3 else 1,),
        277: (channels,),
        284: (1,),
        317: (3 if real else 2,),
        FORMAT: (3 if real else 1,) * channels,
    }
    if plane.alpha is not None:
        small[338] = (PREMULTIPLIED if plane.premultiplied else STRAIGHT,)
    long = [Entry(tag, 4, len(v), struct.pack(f"{order}{len(v)}I", *v)) for tag, v in tags.items()]
    return long + [Entry(tag, 3, len(v), struct.pack(f"{order}{len(v)}H", *v)) for tag, v in small.items()]


def _described(about: Metadata, order: str) -> list[Entry]:
    entries = [entry for entry in exif.fields(about.exif or b"") if entry.tag in DESCRIPTIVE]
    record = photoshop.iptc(about.photoshop)
    blocks = ((XMP, 1, about.xmp), (IPTC, 7, record), (PHOTOSHOP, 1, about.photoshop), (ICC, 7, about.icc))
    entries += [Entry(tag, kind, len(data), data) for tag, kind, data in blocks if data]
    if about.dpi:
        for tag, value in zip((282, 283), about.dpi, strict=True):
            ratio = Fraction(value).limit_denominator(10000)
            entries.append(Entry(tag, 5, 1, struct.pack(order + "II", ratio.numerator, ratio.denominator)))
        entries.append(Entry(296, 3, 1, struct.pack(order + "H", 2)))
    return entries
