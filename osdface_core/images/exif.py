"""EXIF blocks: reset the orientation in place, take them out of TIFF files and put them in.

Pillow reads and writes EXIF for the other formats, but rewrites what it does not know; the orientation is
therefore changed byte by byte, and every other byte (maker notes included) stays.
Source: TIFF 6.0 section 2 (image file directories), EXIF 2.3 section 4.6.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

PREFIX = b"Exif\x00\x00"
ORIENTATION, EXIF, GPS, INTEROP = 274, 34665, 34853, 40965
POINTERS = frozenset((EXIF, GPS, INTEROP))
"""Tags whose value is the place of another directory."""
DESCRIPTIVE = frozenset(
    (
        *(269, 270, 271, 272, 285, 305, 306, 315, 316, 33432),  # title, camera, software, date, rights
        *(18246, 18249, 33723, *range(40091, 40096)),  # rating, IPTC, Windows' own
        *(33550, 33922, 34264, 34735, 34736, 34737),  # place on a map
        *(EXIF, GPS),
    )
)
"""Tags of the first directory that tell about the picture rather than about how its pixels are stored."""
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes per value of each TIFF field type."""
LIMIT = 1 << 24
"""Values above this many bytes are no metadata."""

Reader = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Entry:
    """One field: tag, type, number of values, its bytes, or the fields of the directory it points to."""

    tag: int
    kind: int
    count: int
    data: bytes
    children: tuple[Entry, ...] = ()


def byte_order(head: bytes) -> str | None:
    """struct's sign for a classic TIFF header, or None."""
    return {b"II*\x00": "<", b"MM\x00*": ">"}.get(head[:4])


def parse(read: Reader, offset: int, order: str, depth: int = 0) -> tuple[Entry, ...]:
    """Fields of the directory at `offset`; damaged ones are left out.

    Args:
        read: (place, number of bytes) -> bytes, shorter at the end.
        order: "<" or ">".
    """
    head = read(offset, 2)
    if len(head) < 2 or depth > 3:
        return ()
    entries = []
    for number in range(struct.unpack(order + "H", head)[0]):
        raw = read(offset + 2 + 12 * number, 12)
        if len(raw) < 12:
            break
        tag, kind, count = struct.unpack(order + "HHI", raw[:8])
        size = SIZES.get(kind, 0) * count
        if not 0 < size <= LIMIT:
            continue
        place = struct.unpack(order + "I", raw[8:])[0]
        if tag in POINTERS:
            children = parse(read, place, order, depth + 1)
            entries += [Entry(tag, 4, 1, b"", children)] if children else []
            continue
        data = raw[8 : 8 + size] if size <= 4 else read(place, size)
        if len(data) == size:
            entries.append(Entry(tag, kind, count, data))
    return tuple(entries)


def serialise(entries: Iterable[Entry], order: str, base: int) -> bytes:
    """A directory as bytes that will lie at `base`, with its values and child directories behind it."""
    entries = sorted(entries, key=lambda entry: entry.tag)
    table = struct.pack(order + "H", len(entries))
    extra = b""
    start = base + 2 + 12 * len(entries) + 4
    for entry in entries:
        place = start + len(extra)
        if entry.children:
            extra += serialise(entry.children, order, place)
            value = struct.pack(order + "I", place)
        elif len(entry.data) > 4:
            extra += entry.data + b"\x00" * (len(entry.data) % 2)
            value = struct.pack(order + "I", place)
        else:
            value = entry.data.ljust(4, b"\x00")
        table += struct.pack(order + "HHI", entry.tag, entry.kind, entry.count) + value
    return table + b"\x00\x00\x00\x00" + extra


def _orientation_place(exif: bytes) -> tuple[int, str] | None:
    """Where the orientation value stands in an EXIF block, and its byte order."""
    start = len(PREFIX) if exif.startswith(PREFIX) else 0
    order = byte_order(exif[start:])
    if order is None or len(exif) < start + 10:
        return None
    first = start + struct.unpack_from(order + "I", exif, start + 4)[0]
    if first + 2 > len(exif):
        return None
    for number in range(struct.unpack_from(order + "H", exif, first)[0]):
        place = first + 2 + 12 * number
        if place + 12 > len(exif):
            return None
        tag, kind, count = struct.unpack_from(order + "HHI", exif, place)
        if (tag, kind, count) == (ORIENTATION, 3, 1):
            return place + 8, order
    return None


def orientation(exif: bytes | None) -> int:
    """1 to 8; 1 (upright) where it is missing or damaged."""
    found = _orientation_place(exif) if exif else None
    value = struct.unpack_from(found[1] + "H", exif, found[0])[0] if found and exif else 1
    return value if 1 <= value <= 8 else 1


def reset_orientation(exif: bytes | None) -> bytes | None:
    """The same block, saying upright; no other byte changes."""
    found = _orientation_place(exif) if exif else None
    if not found or not exif:
        return exif
    return exif[: found[0]] + struct.pack(found[1] + "H", 1) + exif[found[0] + 2 :]


def reset_xmp_orientation(xmp: bytes | None) -> bytes | None:
    """The same XMP packet, its tiff:Orientation saying upright (attribute or element); same length."""
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))[2-8]", rb"\g<1>1", xmp) if xmp else xmp


def from_tiff(path: Path) -> bytes | None:
    """An EXIF block with what a classic TIFF's first directory tells about the picture, or None."""
    with path.open("rb") as file:

        def read(place: int, size: int) -> bytes:
            file.seek(place)
            return file.read(size)

        head = read(0, 8)
        order = byte_order(head)
        if order is None or len(head) < 8:
            return None
        entries = parse(read, struct.unpack(order + "I", head[4:])[0], order)
    kept = [entry for entry in entries if entry.tag in DESCRIPTIVE or entry.tag == ORIENTATION]
    if not kept:
        return None
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "I", 8)
    return PREFIX + head + serialise(kept, order, 8)


def into_tiff(path: Path, exif: bytes) -> None:
    """Add an EXIF block's descriptive fields to a classic TIFF written in the block's byte order.

    A new first directory with the old and the new fields is appended; pixels and old values stay in place.
    Nothing happens for a damaged block or a BigTIFF.
    """
    block = exif.removeprefix(PREFIX)
    order = byte_order(block)
    if order is None or len(block) < 8:
        return
    entries = parse(
        lambda place, size: block[place : place + size], struct.unpack(order + "I", block[4:8])[0], order
    )
    with path.open("r+b") as file:
        head = file.read(8)
        if byte_order(head) != order:
            return
        first = struct.unpack(order + "I", head[4:])[0]
        file.seek(first)
        count = struct.unpack(order + "H", file.read(2))[0]
        raw = [file.read(12) for _ in range(count)]
        known = {struct.unpack(order + "H", field[:2])[0]: field for field in raw}
        added = [entry for entry in entries if entry.tag in DESCRIPTIVE and entry.tag not in known]
        if not added:
            return
        base = file.seek(0, 2)
        base += file.write(b"\x00" * (base % 2))
        file.write(_merged(known, added, order, base))
        file.seek(4)
        file.write(struct.pack(order + "I", base))


def _merged(known: dict[int, bytes], added: list[Entry], order: str, base: int) -> bytes:
    """Old fields as they are (their places in the file stay valid) and new ones, sorted by tag."""
    total = len(known) + len(added)
    shift = 12 * len(known)
    fresh = serialise(added, order, base + shift)  # its values lie behind a table that is `shift` longer
    fields = dict(known)
    for number in range(len(added)):
        field = fresh[2 + 12 * number : 14 + 12 * number]
        fields[struct.unpack(order + "H", field[:2])[0]] = field
    table = struct.pack(order + "H", total) + b"".join(fields[tag] for tag in sorted(fields))
    return table + fresh[2 + 12 * len(added) :]
