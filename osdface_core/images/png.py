"""PNG files chunk by chunk: pixels apart from side notes, 16 bits per sample, every colour description.

Pillow decodes the pixels of a stream that holds nothing else, so no side note can stop it; it cuts 16-bit
colour to the upper byte, and a second pass fetches the lower one.
Source: PNG specification, third edition.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from ..errors import ImageError
from . import exif, photoshop
from .metadata import Metadata
from .plane import Plane, check_size, from_pillow, split_alpha

MAGIC = b"\x89PNG\r\n\x1a\n"
COLOR = (b"cICP", b"sRGB", b"gAMA", b"cHRM", b"mDCV", b"mDCv", b"cLLI", b"cLLi")
"""Chunks that say what the samples mean, besides iCCP (with the spelling of drafts)."""
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
STALE = (b"tIME", b"sBIT", b"bKGD", b"hIST", b"sPLT", b"acTL", b"fcTL", b"fdAT")
"""Chunks about the old samples, which new ones make wrong."""
XMP_KEY = "XML:com.adobe.xmp"
LIMIT = 1 << 24
"""Bytes of all unpacked side notes above which more are left out: nothing honest is larger."""
MOST_CHUNKS = 10_000
"""Chunks behind which side notes are left out."""
STRIP = 1 << 22
"""Bytes that are filtered at once."""

Chunk = tuple[bytes, bytes]


def read(data: bytes) -> tuple[Plane, Metadata]:
    """Decode a PNG's samples and metadata.

    Raises:
        ImageError: several frames, or too large.
        ValueError: damaged pixels. A damaged side note is left out and noted.
    """
    stream: list[bytes | memoryview] = [MAGIC]
    about = Metadata()
    chunks: list[Chunk] = []
    for number, (kind, body, raw, whole) in enumerate(_walk(data)):
        if kind in PIXELS:
            if not whole and (kind != b"IDAT" or len(raw) == len(body) + 12):  # the last one may be cut short
                raise ValueError(f"wrong checksum of its {_name(kind)} chunk")
            stream.append(raw)
        elif number >= MOST_CHUNKS:
            if number == MOST_CHUNKS:
                about.notes.append(f"its chunks from number {MOST_CHUNKS} on are left out")
        elif not whole:
            about.notes.append(f"its {_name(kind)} chunk is damaged and left out")
        else:
            chunks.append((kind, bytes(body)))
    frames = int.from_bytes(dict(chunks).get(b"acTL", b"")[:4], "big")
    if frames > 1:
        raise ImageError(f"holds {frames} frames: export the one to restore as its own file")
    pixels = b"".join(stream)
    del data, stream, body, raw  # the file is as large as the picture where noise fills it
    return _decode(pixels), _metadata(chunks, about)


def _walk(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview, bool]]:
    """Yield kind, body, all bytes and wholeness of each chunk."""
    view, place = memoryview(data), len(MAGIC)
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        raw = view[place : place + 12 + size]
        body = raw[8 : 8 + size]
        whole = len(raw) == 12 + size and zlib.crc32(raw[4:-4]) == int.from_bytes(raw[-4:], "big")
        yield kind, body, raw, whole
        place += 12 + size
        if kind == b"IEND":
            return


def _name(kind: bytes) -> str:
    return kind.decode("ascii", "replace") if kind.isalpha() else "unknown"


def _decode(stream: bytes) -> Plane:
    """Decode with all bits what holds only pixels."""
    with Image.open(io.BytesIO(stream), formats=["PNG"]) as image:
        check_size(image.width, image.height)
        depth, kind = stream[24], stream[25]
        if depth != 16:
            image.load()
            return from_pillow(image, Metadata())
        clear = image.info.get("transparency")
        if kind == 0:  # grey: the one 16-bit kind that Pillow holds itself
            samples = np.array(image).astype(np.uint16)[..., None]
        elif kind == 4:  # grey and alpha: four bytes a pixel
            samples = _raw(stream, "RGBA").view(">u2").astype(np.uint16)
        else:
            samples = _raw(stream, f"{image.mode};16B").astype(np.uint16) << 8
            samples |= _raw(
                stream, f"{image.mode};16L"
            )  # read the other way round, the lower byte is the upper
    return Plane(samples, _keyed(samples, clear)) if kind in (0, 2) else split_alpha(samples)


def _raw(stream: bytes, layout: str) -> np.ndarray:
    with Image.open(io.BytesIO(stream), formats=["PNG"]) as image:
        image.tile = [tile._replace(args=layout) for tile in image.tile]
        return np.array(image)


def _keyed(samples: np.ndarray, clear: object) -> np.ndarray | None:
    """Alpha of a file that names one colour as transparent."""
    if not isinstance(clear, (int, tuple)):
        return None
    key = np.atleast_1d(np.asarray(clear, np.uint16))
    return np.where((samples == key).all(axis=2), 0, 65535).astype(np.uint16)


def _metadata(chunks: Iterable[Chunk], found: Metadata) -> Metadata:
    kept: list[Chunk] = []
    text: dict[str, list[str]] = {}
    room = LIMIT
    for kind, body in chunks:
        try:
            if kind in (b"tEXt", b"zTXt", b"iTXt"):
                key, value, encoding = _text(kind, body, room)
                room -= len(value)
                if not _is_block(key, value, found):
                    text.setdefault(key, []).append(value.decode(encoding, "replace"))
            elif kind == b"iCCP":
                found.icc = _inflate(body[body.index(b"\0") + 2 :], room)
                room -= len(found.icc)
            elif kind == b"eXIf":
                found.exif = exif.PREFIX + body.removeprefix(exif.PREFIX)
            elif kind == b"pHYs" and body[8:9] == b"\1":
                x, y = struct.unpack(">II", body[:8])
                found.dpi = (x * 0.0254, y * 0.0254) if x and y else None
            elif kind in COLOR or (kind[3:].islower() and kind not in STALE):
                kept.append((kind, body))  # a lower-case fourth letter: safe to copy beside new pixels
            elif kind not in STALE:
                found.notes.append(f"its {_name(kind)} chunk holds only for the old pixels and is left out")
        except (ValueError, zlib.error, struct.error) as error:
            found.notes.append(f"its {_name(kind)} chunk is left out ({error})")
    found.text = {key: "\n".join(parts) for key, parts in text.items()}
    found.chunks = tuple(kept)
    return found


def _text(kind: bytes, body: bytes, room: int) -> tuple[str, bytes, str]:
    """Keyword, text as stored and its encoding."""
    key, _, rest = body.partition(b"\0")
    name = key.decode("latin-1")
    if kind == b"tEXt":
        return name, rest, "latin-1"
    if kind == b"zTXt":
        return name, _inflate(rest[1:], room), "latin-1"
    packed, rest = rest[:1] == b"\1", rest[2:]
    _, _, rest = rest.partition(b"\0")  # language
    _, _, rest = rest.partition(b"\0")  # keyword in that language
    return name, _inflate(rest, room) if packed else rest, "utf-8"


def _is_block(key: str, value: bytes, found: Metadata) -> bool:
    """Take a text that is not one: XMP, or a block that other programs keep as text."""
    if key == XMP_KEY:
        found.xmp = value
    elif key.startswith("Raw profile type "):
        _take_raw_profile(key.rpartition(" ")[2].lower(), value, found)
    else:
        return False
    return True


def _take_raw_profile(kind: str, value: bytes, found: Metadata) -> None:
    """Take a block as ImageMagick and ExifTool keep it in PNG: name, length, hexadecimal digits."""
    digits = value.split(None, 2)[2] if len(value.split(None, 2)) == 3 else b""
    block = bytes.fromhex(digits.decode("ascii"))
    if block.startswith(exif.PREFIX) or kind == "exif":
        found.exif = found.exif or exif.PREFIX + block.removeprefix(exif.PREFIX)
    elif kind in ("iptc", "8bim"):
        found.photoshop = photoshop.from_block(block)
    elif kind in ("xmp", "app1"):
        found.xmp = found.xmp or block[max(0, block.find(b"<")) :]
    elif kind in ("icc", "icm"):
        found.icc = found.icc or block


def _inflate(data: bytes, room: int) -> bytes:
    unpacked = zlib.decompressobj().decompress(data, room + 1)
    if len(unpacked) > room:
        raise ValueError(f"all together unpack to more than {LIMIT >> 20} MB")
    return unpacked


def encode(samples: np.ndarray, chunks: Iterable[Chunk]) -> bytes:
    """Encode (H, W, 1 to 4) uint16 samples, with metadata chunks behind the header.

    Every row takes the filter "average", and zlib its run-length strategy: the noise of 16-bit samples hides
    longer matches, so a choice of filters and matches for each row would save 1 to 5 % in ten times the time.
    """
    height, width, channels = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    pack = zlib.compressobj(strategy=zlib.Z_RLE)
    step = max(1, STRIP // (width * channels * 2))
    parts = [MAGIC, _chunk(b"IHDR", header), *(_chunk(*chunk) for chunk in chunks)]
    above = np.zeros((1, width * channels * 2), np.uint8)
    for top in range(0, height, step):
        rows = np.ascontiguousarray(samples[top : top + step], ">u2").view(np.uint8)
        rows = rows.reshape(len(rows), -1)
        packed = pack.compress(_filtered(rows, np.concatenate((above, rows[:-1])), channels * 2))
        parts += [_chunk(b"IDAT", packed)] if packed else []
        above = rows[-1:]
    return b"".join((*parts, _chunk(b"IDAT", pack.flush()), _chunk(b"IEND", b"")))


def with_chunks(data: memoryview, chunks: Iterable[Chunk]) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a PNG with metadata chunks behind its header."""
    header = len(MAGIC) + 25
    yield data[:header]
    yield from (_chunk(*chunk) for chunk in chunks)
    yield data[header:]


def _filtered(rows: np.ndarray, up: np.ndarray, pixel: int) -> bytes:
    """Subtract from each byte the mean of those left and above (PNG specification 9.2, type 3)."""
    left = np.pad(rows, ((0, 0), (pixel, 0)))[:, : rows.shape[1]]
    mean = (left & up) + ((left ^ up) >> 1)  # without the carry that a sum of bytes would lose
    return np.pad(rows - mean, ((0, 0), (1, 0)), constant_values=3).tobytes()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def metadata_chunks(about: Metadata) -> list[Chunk]:
    """Build PNG chunks of the metadata, colour first; IPTC where ImageMagick and ExifTool look for it."""
    chunks = [chunk for chunk in about.chunks if chunk[0] in COLOR]
    if about.icc:
        chunks.append((b"iCCP", b"ICC profile\x00\x00" + zlib.compress(about.icc)))
    if about.dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in about.dpi), 1)))
    if about.exif:
        chunks.append((b"eXIf", about.exif.removeprefix(exif.PREFIX)))
    if about.xmp:
        chunks.append((b"iTXt", XMP_KEY.encode() + b"\x00\x00\x00\x00\x00" + about.xmp))
    if about.photoshop:
        digits = about.photoshop.hex()
        lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
        text = f"\niptc\n{len(about.photoshop):8d}\n{lines}\n"
        chunks.append((b"zTXt", b"Raw profile type iptc\x00\x00" + zlib.compress(text.encode())))
    text = [*about.text.items(), *(("Comment", comment_text(comment)) for comment in about.comments)]
    chunks += [_text_chunk(key, value) for key, value in text]
    return chunks + [chunk for chunk in about.chunks if chunk[0] not in COLOR]


def comment_text(comment: bytes) -> str:
    """Decode a comment of a format that does not say how it is encoded."""
    try:
        return comment.decode("utf-8")
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _text_chunk(key: str, value: str) -> Chunk:
    name = key.encode("latin-1", "replace")[:79] or b"Comment"
    try:
        return b"tEXt", name + b"\x00" + value.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", name + b"\x00\x00\x00\x00\x00" + value.encode("utf-8", "replace")
