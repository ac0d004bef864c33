"""Photoshop's image resources, which carry IPTC captions in JPEG and TIFF.

Source: Adobe Photoshop File Formats Specification, "Image Resource Blocks"; IPTC-IIM 4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PREFIX = b"Photoshop 3.0\x00"
IPTC = 0x0404
THUMBNAILS = (0x0409, 0x040C)
PLACES = (0x03ED, 0x0408, *range(2000, 3000))
"""Resolution, guides and paths: they hold for the stored rows and columns."""


def resources(block: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield number, data and all bytes of each whole resource."""
    place = 0
    while block[place : place + 4] == b"8BIM" and place + 12 <= len(block):
        number = struct.unpack_from(">H", block, place + 4)[0]
        name = block[place + 6] + 1
        start = place + 6 + name + name % 2 + 4
        if start > len(block):
            return
        size = struct.unpack_from(">I", block, start - 4)[0]
        if start + size > len(block):
            return
        end = start + size + size % 2
        yield number, block[start : start + size], block[place:end].ljust(end - place, b"\x00")
        place = end


def from_block(block: bytes) -> bytes | None:
    """Keep the whole resources of a block; a bare IPTC record becomes one."""
    block = block.removeprefix(PREFIX)
    if block[:1] == b"\x1c":
        return resource(IPTC, block)
    return b"".join(raw for _, _, raw in resources(block)) or None


def resource(number: int, data: bytes) -> bytes:
    """Pack one resource without a name."""
    return b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + b"\x00" * (len(data) % 2)


def iptc(block: bytes | None) -> bytes | None:
    """Find the IPTC record among the resources."""
    return next((data for number, data, _ in resources(block or b"") if number == IPTC), None)


def turned(block: bytes | None) -> bytes | None:
    """Leave out what no longer fits a picture that was turned: its thumbnails, guides and paths."""
    kept = (raw for number, _, raw in resources(block or b"") if number not in (*THUMBNAILS, *PLACES))
    return b"".join(kept) or None
