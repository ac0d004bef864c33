"""EXIF blocks and the directories of TIFF: read fields, reset the orientation in place, pack fields again.

Pillow reads and writes EXIF, but rewrites what it does not know; the orientation is therefore changed byte by
byte, and every other byte (maker notes included) stays.
Source: TIFF 6.0 section 2 (image file directories), BigTIFF, EXIF 2.3 section 4.6.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

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

TOTAL = 1 << 26
"""Bytes that all values of a file may have together: its directories can name one value many times."""
COST = 1024
"""Bytes that reading anything at all counts: directories can name each other without end."""

Reader = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Entry:
    """One field: tag, type, number of values, its bytes, or the fields of the directory it points to.

    Attributes:
        row: where the field was read, counted from the header.
    """

    tag: int
    kind: int
    count: int
    data: bytes
    children: tuple[Entry, ...] = ()
    row: int = 0

    def numbers(self, order: str) -> tuple[int, ...]:
        """Read the field's whole numbers; none for other types."""
        sign = WHOLE.get(self.kind)
        return struct.unpack(f"{order}{self.count}{sign}", self.data) if sign else ()


class Directory(NamedTuple):
    """Fields of a directory, where its link to the next one stands, and where that leads (0: nowhere)."""

    entries: tuple[Entry, ...] = ()
    link: int = 0
    next: int = 0


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


def metered(read: Reader) -> Reader:
    """Make a reader that finds nothing more once it has read `TOTAL`."""
    left = TOTAL

    def read_some(place: int, size: int) -> bytes:
        nonlocal left
        left -= max(size, COST)
        return read(place, size) if left >= 0 else b""

    return read_some


def parse(read: Reader, offset: int, form: Header, depth: int = 0) -> Directory:
    """Read the directory at `offset`; leave out damaged fields.

    Args:
        read: (place, number of bytes) -> bytes, shorter at the end.
    """
    head = read(offset, form.counter.size)
    if len(head) < form.counter.size or depth > 3:
        return Directory()
    start, count = offset + len(head), form.counter.unpack(head)[0]
    entries = []
    for row in range(start, start + form.width * count, form.width):
        raw = read(row, form.width)
        if len(raw) < form.width:
            return Directory(tuple(entries))
        entries += _entry(read, row, raw, form, depth)
    link = start + form.width * count
    raw = read(link, form.place.size)
    return Directory(tuple(entries), link, form.place.unpack(raw)[0] if len(raw) == form.place.size else 0)


def _entry(read: Reader, row: int, raw: bytes, form: Header, depth: int) -> list[Entry]:
    inline = form.place.size
    tag, kind = struct.unpack(form.order + "HH", raw[:4])
    count, place = form.place.unpack(raw[4:-inline])[0], form.place.unpack(raw[-inline:])[0]
    size = SIZES.get(kind, 0) * count
    if not 0 < size <= LIMIT:
        return []
    if tag in POINTERS:
        children = parse(read, place, form, depth + 1).entries
        return [Entry(tag, 4, 1, b"", children)] if children else []
    data = raw[-inline:][:size] if size <= inline else read(place, size)
    return [Entry(tag, kind, count, data, row=row)] if len(data) == size else []


def _directory(block: bytes | None) -> tuple[Header | None, Directory]:
    """Header and first directory of an EXIF block or of a whole TIFF in memory; nothing if damaged."""
    body = (block or b"").removeprefix(PREFIX)
    form = header(body[:16])
    if form is None:
        return None, Directory()
    return form, parse(_reader(body), form.first, form)


def _reader(body: bytes) -> Reader:
    return metered(lambda place, size: body[place : place + size])


def fields(block: bytes | None) -> tuple[Entry, ...]:
    """Read the first directory of an EXIF block or of a whole TIFF in memory; none if it is damaged."""
    return _directory(block)[1].entries


def pack(entries: Iterable[Entry], order: str) -> bytes:
    """Pack fields as an EXIF block."""
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "I", 8)
    return PREFIX + head + serialise(entries, order, 8)


def serialise(entries: Iterable[Entry], order: str, base: int) -> bytes:
    """Pack a directory that will lie at `base`, with its values and child directories behind it."""
    kept = (entry for entry in entries if entry.kind < 16 and (entry.data or entry.children))
    entries = sorted(kept, key=lambda entry: entry.tag)
    table = bytearray(struct.pack(order + "H", len(entries)))
    extra = bytearray()
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
    return bytes(table + b"\x00\x00\x00\x00" + extra)


def whole(order: str, tag: int, kind: int, *numbers: int) -> Entry:
    """Make a field of whole numbers."""
    return Entry(tag, kind, len(numbers), struct.pack(f"{order}{len(numbers)}{WHOLE[kind]}", *numbers))


def byte_order(block: bytes | None) -> str:
    """Read the byte order of an EXIF block or TIFF; "<" if there is none."""
    found = header((block or b"").removeprefix(PREFIX)[:16])
    return found.order if found else "<"


def is_readable(block: bytes) -> bool:
    """Tell whether an EXIF block has a header and a first directory within it."""
    body = block.removeprefix(PREFIX)
    found = header(body[:16])
    return found is not None and 8 <= found.first <= len(body) - found.counter.size


def _replaced(block: bytes, values: dict[int, int]) -> bytes:
    """Put other numbers into the fields that hold one, by tag; no other byte changes."""
    form, first = _directory(block)
    result, start = bytearray(block), len(PREFIX) if block.startswith(PREFIX) else 0
    for entry in _leaves(first.entries):
        value = values.get(entry.tag, 0)
        inline = form is not None and len(entry.data) <= form.place.size
        if form and inline and entry.kind in WHOLE and 0 < value < 256 ** SIZES[entry.kind]:
            place = start + entry.row + form.width - form.place.size
            struct.pack_into(form.order + WHOLE[entry.kind], result, place, value)
    return bytes(result)


def with_size(block: bytes | None, width: int, height: int) -> bytes | None:
    """Make the block name the size of the written picture, where it names one; other bytes stay."""
    return _replaced(block, {40962: width, 40963: height, 256: width, 257: height}) if block else block


def find_orientation(block: bytes | None) -> int:
    """Find the orientation of an EXIF block or TIFF: 1 to 8; 1 if it is nonsense, 0 if it is missing."""
    numbers = (entry.numbers(byte_order(block)) for entry in fields(block) if entry.tag == ORIENTATION)
    values = [found[0] for found in numbers if found]
    return 0 if not values else values[0] if 1 <= values[0] <= 8 else 1


def reset_orientation(block: bytes | None) -> bytes | None:
    """Make the block say upright; no other byte changes."""
    return _replaced(block, {ORIENTATION: 1}) if block else block


def swap_resolution(block: bytes | None) -> bytes | None:
    """Exchange the resolutions across and down, for a picture that is turned by a right angle."""
    form, first = _directory(block)
    rows = {entry.tag: entry.row for entry in first.entries if entry.tag in (282, 283)}
    if block is None or form is None or len(rows) < 2:
        return block
    start = len(PREFIX) if block.startswith(PREFIX) else 0
    across, down = (slice(start + row + 2, start + row + form.width) for row in (rows[282], rows[283]))
    result = bytearray(block)
    result[across], result[down] = result[down], result[across]
    return bytes(result)


def without_thumbnail(block: bytes | None) -> bytes | None:
    """Unlink the second directory, which holds the thumbnail, and blank that; all else keeps its place."""
    body = (block or b"").removeprefix(PREFIX)
    form, first = _directory(body)
    if block is None or form is None or not first.next:
        return block
    second = parse(_reader(body), first.next, form).entries
    known = {entry.tag: next(iter(entry.numbers(form.order)), 0) for entry in second}
    rest = bytearray(body)
    rest[first.link : first.link + form.place.size] = bytes(form.place.size)
    start = known.get(THUMBNAIL, 0)
    end = start + known.get(THUMBNAIL_SIZE, 0)
    if 8 <= start < end <= len(rest):
        rest[start:end] = b"" if end >= len(rest) - 1 else bytes(end - start)
    return block[: len(block) - len(body)] + bytes(rest)


FIELD = 12
"""Bytes of a field in a directory, beside its data."""
NAMED = 8
"""Most names of fields in one line."""


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
    while entries and (excess := len(shorter := pack(entries, order)) - limit) > 0:
        largest = sorted(_leaves(entries), key=lambda entry: -len(entry.data))
        sizes = itertools.accumulate((len(entry.data) + 1) // 2 * 2 + FIELD for entry in largest)
        dropped = largest[: 1 + next((number for number, size in enumerate(sizes) if size >= excess), 0)]
        entries = _without(entries, *dropped)
        gone += [ExifTags.TAGS.get(entry.tag, str(entry.tag)) for entry in dropped]
    names = ", ".join(gone[:NAMED]) + (f" and {len(gone) - NAMED} more" if len(gone) > NAMED else "")
    return (shorter, names) if entries else (None, "all of it")


def _leaves(entries: Iterable[Entry]) -> Iterator[Entry]:
    for entry in entries:
        yield from _leaves(entry.children) if entry.children else (entry,)


def _without(entries: Iterable[Entry], *gone: Entry) -> tuple[Entry, ...]:
    return _kept(entries, {id(entry) for entry in gone})


def _kept(entries: Iterable[Entry], gone: set[int]) -> tuple[Entry, ...]:
    kept = [
        replace(entry, children=_kept(entry.children, gone)) if entry.children else entry
        for entry in entries
        if id(entry) not in gone
    ]
    return tuple(entry for entry in kept if entry.children or entry.data)
