"""EXIF blocks and the directories of TIFF: read fields, reset the orientation in place, pack fields again.

Pillow reads and writes EXIF, but rewrites what it does not know; the orientation is therefore changed byte by
byte, and every other byte (maker notes included) stays.
Source: TIFF 6.0 section 2 (image file directories), BigTIFF, EXIF 2.3 section 4.6.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from PIL import ExifTags

PREFIX = b"Exif\x00\x00"
ORIENTATION, EXIF, GPS, INTEROP, MAKER_NOTE = 274, 34665, 34853, 40965, 37500
THUMBNAIL, THUMBNAIL_SIZE = 513, 514
POINTERS = frozenset((EXIF, GPS, INTEROP))
"""Tags whose value is the place of another directory."""
SIZES = dict(zip((*range(1, 14), 16, 17, 18), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8), strict=True))
"""Bytes per value of each TIFF field type; those from 16 on are BigTIFF's."""
WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""struct's signs for the field types of whole numbers."""
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

    def numbers(self, order: str) -> tuple[int, ...]:
        """Read the field's whole numbers; none for other types."""
        sign = WHOLE.get(self.kind)
        return struct.unpack(f"{order}{self.count}{sign}", self.data) if sign else ()


@dataclass(frozen=True)
class Header:
    """Byte order ("<" or ">"), place of the first directory, and whether it is a BigTIFF (8-byte places)."""

    order: str
    first: int
    big: bool = False

    @property
    def width(self) -> int:
        """Bytes of one field in a directory."""
        return 20 if self.big else 12

    @property
    def counter(self) -> struct.Struct:
        """How the number of fields is stored."""
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def place(self) -> struct.Struct:
        """How a place in the file is stored."""
        return struct.Struct(self.order + ("Q" if self.big else "I"))


def header(head: bytes) -> Header | None:
    """Read the first bytes (8, or 16 of a BigTIFF) of a TIFF or of an EXIF block without its prefix."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return None
    version = struct.unpack(order + "H", head[2:4])[0]
    if version == 42:
        return Header(order, struct.unpack(order + "I", head[4:8])[0])
    if version == 43 and len(head) >= 16 and struct.unpack(order + "HH", head[4:8]) == (8, 0):
        return Header(order, struct.unpack(order + "Q", head[8:16])[0], big=True)
    return None


def parse(read: Reader, offset: int, order: str, depth: int = 0, *, big: bool = False) -> tuple[Entry, ...]:
    """Read the fields of the directory at `offset`; leave out damaged ones.

    Args:
        read: (place, number of bytes) -> bytes, shorter at the end.
        order: "<" or ">".
    """
    kind_of = Header(order, offset, big)
    inline = kind_of.place.size
    head = read(offset, kind_of.counter.size)
    if len(head) < kind_of.counter.size or depth > 3:
        return ()
    entries = []
    for number in range(kind_of.counter.unpack(head)[0]):
        raw = read(offset + kind_of.counter.size + kind_of.width * number, kind_of.width)
        if len(raw) < kind_of.width:
            break
        tag, kind = struct.unpack(order + "HH", raw[:4])
        count = kind_of.place.unpack(raw[4 : 4 + inline])[0]
        size = SIZES.get(kind, 0) * count
        if not 0 < size <= LIMIT:
            continue
        value = raw[4 + inline :]
        place = kind_of.place.unpack(value)[0]
        if tag in POINTERS:
            children = parse(read, place, order, depth + 1, big=big)
            entries += [Entry(tag, 4, 1, b"", children)] if children else []
            continue
        data = value[:size] if size <= inline else read(place, size)
        if len(data) == size:
            entries.append(Entry(tag, kind, count, data))
    return tuple(entries)


def fields(block: bytes) -> tuple[Entry, ...]:
    """Read the first directory of an EXIF block or of a whole TIFF in memory; none if it is damaged."""
    block = block.removeprefix(PREFIX)
    found = header(block[:16])
    if found is None:
        return ()
    return parse(lambda place, size: block[place : place + size], found.first, found.order, big=found.big)


def pack(entries: Iterable[Entry], order: str) -> bytes:
    """Pack fields as an EXIF block."""
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "I", 8)
    return PREFIX + head + serialise(entries, order, 8)


def serialise(entries: Iterable[Entry], order: str, base: int) -> bytes:
    """Pack a directory that will lie at `base`, with its values and child directories behind it."""
    entries = sorted((entry for entry in entries if entry.kind < 16), key=lambda entry: entry.tag)
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


def byte_order(block: bytes | None) -> str:
    """Read the byte order of an EXIF block or TIFF; "<" if there is none."""
    found = header((block or b"").removeprefix(PREFIX)[:16])
    return found.order if found else "<"


def is_readable(block: bytes) -> bool:
    """Tell whether an EXIF block has a header and a first directory within it."""
    body = block.removeprefix(PREFIX)
    found = header(body[:16])
    return found is not None and 8 <= found.first <= len(body) - found.counter.size


def _places(block: bytes) -> Iterator[tuple[int, int, str]]:
    """Tag, place and format of the single whole numbers in the first directory and the EXIF one."""
    start = len(PREFIX) if block.startswith(PREFIX) else 0
    found = header(block[start : start + 16])
    directories = [found.first] if found else []
    for directory in directories:
        table = start + directory + found.counter.size if found else 0
        if found is None or directory < 8 or table > len(block):
            return
        for number in range(found.counter.unpack_from(block, start + directory)[0]):
            place = table + found.width * number
            if place + found.width > len(block):
                break
            tag, kind = struct.unpack_from(found.order + "HH", block, place)
            value = place + 4 + found.place.size
            if kind not in WHOLE or SIZES[kind] > found.place.size:
                continue
            if tag == EXIF and len(directories) == 1:
                directories.append(struct.unpack_from(found.order + WHOLE[kind], block, value)[0])
            yield tag, value, found.order + WHOLE[kind]


def _orientation_place(block: bytes) -> tuple[int, str] | None:
    """Where the orientation value stands in an EXIF block or TIFF, and how."""
    return next(((place, sign) for tag, place, sign in _places(block) if tag == ORIENTATION), None)


def with_size(block: bytes | None, width: int, height: int) -> bytes | None:
    """Make the block name the size of the written picture, where it names one; other bytes stay."""
    if block is None:
        return None
    result = bytearray(block)
    for tag, place, sign in _places(block):
        size = {40962: width, 40963: height, 256: width, 257: height}.get(tag)
        if size and size < 256 ** struct.calcsize(sign):
            struct.pack_into(sign, result, place, size)
    return bytes(result)


def find_orientation(block: bytes | None) -> int:
    """Find the orientation of an EXIF block or TIFF: 1 to 8; 1 if it is nonsense, 0 if it is missing."""
    found = _orientation_place(block) if block else None
    if not found or not block:
        return 0
    value = struct.unpack_from(found[1], block, found[0])[0]
    return value if 1 <= value <= 8 else 1


def orientation(block: bytes | None) -> int:
    """Read the orientation, 1 to 8; 1 (upright) where it is missing or damaged."""
    return find_orientation(block) or 1


def reset_orientation(block: bytes | None) -> bytes | None:
    """Make the block say upright; no other byte changes."""
    found = _orientation_place(block) if block else None
    if not found or not block:
        return block
    value = struct.pack(found[1], 1)
    return block[: found[0]] + value + block[found[0] + len(value) :]


def swap_resolution(block: bytes | None) -> bytes | None:
    """Exchange the resolutions across and down, for a picture that is turned by a right angle."""
    body = (block or b"").removeprefix(PREFIX)
    found = header(body[:16])
    if block is None or found is None or found.first + 2 > len(body):
        return block
    start = len(block) - len(body)
    result = bytearray(block)
    places = {}
    for number in range(found.counter.unpack_from(body, found.first)[0]):
        place = start + found.first + found.counter.size + found.width * number
        if place + found.width <= len(block):
            places[struct.unpack_from(found.order + "H", block, place)[0]] = place
    if {282, 283} <= places.keys():
        across, down = (slice(places[tag] + 2, places[tag] + found.width) for tag in (282, 283))
        result[across], result[down] = result[down], result[across]
    return bytes(result)


def without_thumbnail(block: bytes | None) -> bytes | None:
    """Unlink the second directory, which holds the thumbnail, and blank that; all else keeps its place."""
    body = (block or b"").removeprefix(PREFIX)
    found = header(body[:16])
    if block is None or found is None or found.big or found.first + 2 > len(body):
        return block
    link = found.first + 2 + 12 * found.counter.unpack_from(body, found.first)[0]
    if link + 4 > len(body):
        return block
    second = found.place.unpack_from(body, link)[0]
    if not 8 <= second < len(body):
        return block
    entries = parse(lambda place, size: body[place : place + size], second, found.order)
    known = {entry.tag: next(iter(entry.numbers(found.order)), 0) for entry in entries}
    rest = bytearray(body)
    rest[link : link + 4] = bytes(4)
    start = known.get(THUMBNAIL, 0)
    end = start + known.get(THUMBNAIL_SIZE, 0)
    if 8 <= start < end <= len(rest):
        rest[start:end] = b"" if end >= len(rest) - 1 else bytes(end - start)
    return block[: len(block) - len(body)] + bytes(rest)


def fitted(block: bytes, limit: int) -> tuple[bytes | None, str]:
    """Shorten an EXIF block to `limit` bytes: first the thumbnail goes, then the largest fields.

    The maker note goes with any field, because its contents may name places in the block.

    Returns:
        the block, or None if nothing can be kept; the names of what is left out.
    """
    shorter = without_thumbnail(block) or block
    if len(shorter) <= limit:
        return shorter, "thumbnail"
    order, entries, gone = byte_order(block), fields(block), []
    for entry in [e for e in _leaves(entries) if e.tag == MAKER_NOTE]:
        entries, gone = _without(entries, entry), [*gone, "MakerNote"]
    while entries and len(shorter := pack(entries, order)) > limit:
        largest = max(_leaves(entries), key=lambda entry: len(entry.data))
        entries = _without(entries, largest)
        gone.append(ExifTags.TAGS.get(largest.tag, str(largest.tag)))
    return (shorter, ", ".join(gone)) if entries else (None, "all of it")


def _leaves(entries: Iterable[Entry]) -> Iterator[Entry]:
    for entry in entries:
        yield from _leaves(entry.children) if entry.children else (entry,)


def _without(entries: Iterable[Entry], gone: Entry) -> tuple[Entry, ...]:
    kept = [
        replace(entry, children=_without(entry.children, gone)) if entry.children else entry
        for entry in entries
        if entry is not gone
    ]
    return tuple(entry for entry in kept if entry.children or entry.data)
