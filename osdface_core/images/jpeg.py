"""JPEG files segment by segment: pixels apart from side notes, and blocks that take several segments.

Source: ITU-T T.81 annex B, EXIF 2.3 section 4.7, ICC.1 annex B.4, XMP part 3, CIPA DC-007 (MPF).
"""

from __future__ import annotations

import re
import struct

from . import exif, photoshop, xmp
from .metadata import Metadata

SOI, SOS, EOI, APP1, APP2, APP13, COM = 0xD8, 0xDA, 0xD9, 0xE1, 0xE2, 0xED, 0xFE
ROOM = 65533
"""Most bytes in one segment."""
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\x00"
MORE_XMP = b"http://ns.adobe.com/xmp/extension/\x00"
ICC_PREFIX = b"ICC_PROFILE\x00"
MPF_PREFIX = b"MPF\x00"
MPF_ENTRIES = 0xB002
GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\x00"
SIDE_NOTES = (*range(APP1, 0xEE), 0xEF, COM)
"""All but the header (APP0) and the colour transform (APP14), which the decoder needs."""
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker with a body, unlike restarts and the start of a picture."""

Segment = tuple[int, bytes]


def read(data: bytes) -> tuple[bytes, Metadata]:
    """Split a JPEG into pixels and side notes.

    Returns:
        a JPEG without side notes, for the decoder; and what the side notes say. Damaged ones are left out.
    """
    segments, pixels = _split(data)
    found = Metadata()
    blocks = _bodies(segments, APP1, exif.PREFIX)
    found.exif = exif.PREFIX + b"".join(blocks) if blocks else None
    found.icc = _icc(_bodies(segments, APP2, ICC_PREFIX), found)
    found.comments = tuple(body for marker, body in segments if marker == COM and body)
    resources = _bodies(segments, APP13, photoshop.PREFIX)
    found.photoshop = photoshop.from_block(b"".join(resources))
    _take_xmp(_bodies(segments, APP1, XMP_PREFIX), _bodies(segments, APP1, MORE_XMP), found)
    if _bodies(segments, APP2, GAIN_MAP):
        found.notes.append("its HDR gain map is left out")
    elif any(_second_picture(index) for index in _bodies(segments, APP2, MPF_PREFIX)):
        found.notes.append("its second picture is left out")
    return pixels, found


def _split(data: bytes) -> tuple[list[Segment], bytes]:
    """Side notes before the first scan, and the file without them."""
    notes: list[Segment] = []
    pixels = [data[:2]]
    place = 2
    while found := MARKER.search(data, place):  # past filling, and bytes that do not belong here
        place = found.start()
        marker, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (SOS, EOI) or place + 4 > len(data):
            break
        if marker in SIDE_NOTES:
            notes.append((marker, data[place + 4 : place + 2 + size]))
        else:
            pixels.append(data[place : place + 2 + size])
        place += 2 + max(2, size)
    return notes, b"".join((*pixels, memoryview(data)[place:]))


def _bodies(segments: list[Segment], marker: int, prefix: bytes) -> list[bytes]:
    """What follows the prefix in segments of one kind."""
    return [body[len(prefix) :] for kind, body in segments if kind == marker and body.startswith(prefix)]


def _icc(bodies: list[bytes], found: Metadata) -> bytes | None:
    parts = {body[0]: body for body in bodies if len(body) > 2}
    if not parts:
        return None
    if sorted(parts) != list(range(1, next(iter(parts.values()))[1] + 1)):
        found.notes.append("its colour profile is damaged and left out")
        return None
    return b"".join(parts[number][2:] for number in sorted(parts))


def _take_xmp(packets: list[bytes], more: list[bytes], found: Metadata) -> None:
    if not packets:
        return
    found.xmp = packets[0]
    if b"HasExtendedXMP" in found.xmp:
        found.xmp, notes = xmp.merged(found.xmp, _joined([part for part in more if part[:32] in packets[0]]))
        found.notes += notes


def _joined(parts: list[bytes]) -> bytes | None:
    """Extended XMP from its parts (checksum, length, place, bytes), or None if some are missing."""
    heads = sorted((*struct.unpack(">II", part[32:40])[::-1], part[40:]) for part in parts if len(part) > 40)
    whole = b"".join(body for _, _, body in heads)
    return whole if heads and len(whole) == heads[0][1] else None


def _second_picture(index: bytes) -> bool:
    """Whether a multi-picture index names more than previews (thumbnail types begin with 1)."""
    rows = next((entry.data for entry in exif.fields(index) if entry.tag == MPF_ENTRIES), b"")
    order = exif.byte_order(index)
    kinds = [struct.unpack_from(order + "I", rows, start)[0] for start in range(0, len(rows) - 15, 16)]
    return any(kind & 0xFF0000 != 0x10000 for kind in kinds[1:])


def segments(about: Metadata) -> bytes:
    """Pack side notes as segments, EXIF first; what does not fit is left out and added to `about.notes`."""
    notes = about.notes
    parts: list[Segment] = []
    block = about.exif
    if block and len(block) > ROOM:
        block, gone = exif.fitted(block, ROOM)
        notes.append(f"EXIF is larger than the 64 kB of a JPEG: left out {gone}")
    if block:
        parts.append((APP1, block))
    parts += _xmp_segments(about.xmp, notes) if about.xmp else []
    profile = _cut(about.icc or b"", ROOM - len(ICC_PREFIX) - 2)
    if len(profile) > 255:
        notes.append("the colour profile is larger than a JPEG holds and left out")
        profile = []
    parts += [(APP2, ICC_PREFIX + bytes((n, len(profile))) + part) for n, part in enumerate(profile, 1)]
    parts += _resource_segments(about.photoshop or b"", notes)
    parts += [(COM, part) for comment in about.comments for part in _cut(comment, ROOM)]
    return b"".join(b"\xff" + bytes((m,)) + struct.pack(">H", len(body) + 2) + body for m, body in parts)


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _xmp_segments(packet: bytes, notes: list[str]) -> list[Segment]:
    limit = ROOM - len(XMP_PREFIX)
    if len(packet) <= limit:
        return [(APP1, XMP_PREFIX + packet)]
    both = xmp.split(packet, limit)
    if both is None:
        notes.append("XMP is larger than the 64 kB of a JPEG and left out")
        return []
    main, more = both
    step = ROOM - len(MORE_XMP) - 40
    head = MORE_XMP + xmp.checksum(more) + struct.pack(">I", len(more))
    pieces = range(0, len(more), step)
    return [
        (APP1, XMP_PREFIX + main),
        *((APP1, head + struct.pack(">I", start) + more[start : start + step]) for start in pieces),
    ]


def _resource_segments(block: bytes, notes: list[str]) -> list[Segment]:
    """Photoshop's resources, one that would be cut in a segment of its own."""
    parts, room = [b""], ROOM - len(photoshop.PREFIX)
    for number, _, raw in photoshop.resources(block):
        if len(raw) > room:
            what = "IPTC" if number == photoshop.IPTC else f"Photoshop's resource {number}"
            notes.append(f"{what} is larger than the 64 kB of a JPEG and left out")
        elif len(parts[-1]) + len(raw) > room:
            parts.append(raw)
        else:
            parts[-1] += raw
    return [(APP13, photoshop.PREFIX + part) for part in parts if part]
