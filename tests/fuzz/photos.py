"""Photos of every kind that is read, with all side notes, and damaged ones made of them by number."""

from __future__ import annotations

import importlib.util
import io
import itertools
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms

from osdface_core.errors import ImageError
from osdface_core.images import Photo, exif, jpeg, photoshop, read_photo, tiff, write_photo
from tests import test_image_metadata as made

NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
PNG = b"\x89PNG\r\n\x1a\n"
FIELDS = (2, 12, 20)  # bytes of what a TIFF's directory is cut into; those keep their length
TARGETS = (".png", ".jpg", ".tif", ".webp", ".bmp")


def seeds(folder: Path) -> dict[str, bytes]:
    """Make the whole photos, by file name."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = made.packet('tiff:Orientation="6"', "<dc:title>t</dc:title>")
    full = Photo(
        made.picture(), icc=srgb, exif=made.exif_with_thumbnail(6), xmp=xmp, dpi=(300, 72),
        text={"title": "a", "Grüße": "日本"}, photoshop=photoshop.from_block(made.CAPTION), comments=(b"c",),
        chunks=(made.HDR, made.SRGB, made.GAMMA_ONE, made.P3, made.LIGHT, (b"vpAg", bytes(9))),
    )  # fmt: skip
    deep, alpha = replace(full, pixels=made.picture("uint16")), made.picture()[..., 0]
    for name in ("a.png", "a.jpg", "a.tif", "a.webp", "a.bmp", "a.ppm"):
        write_photo(folder / name, full)
    write_photo(folder / "deep.png", replace(deep, alpha=alpha.astype(np.uint16) * 257))
    write_photo(folder / "deep.tif", deep)
    write_photo(folder / "float.tif", replace(full, pixels=made.picture().astype(np.float32) / 255))
    write_photo(folder / "alpha.webp", replace(full, alpha=alpha, lossless=False))
    large = b"workflow\0\0" + zlib.compress(b"x" * 1_500_000)
    made.png_with(folder / "notes.png", (b"zTXt", large), (b"acTL", bytes(8)), (b"sBIT", b"\5\6\5"))
    gain = made.exif_with_thumbnail(1)
    made.jpeg_with(
        folder / "gain.jpg", (jpeg.APP1, jpeg.XMP_PREFIX + made.GAIN_MAP_XMP),
        (jpeg.APP2, jpeg.MPF_PREFIX + gain[6:]), (jpeg.APP2, jpeg.GAIN_MAP), (0xEE, b"Adobe\0d\0\0\0\0\1"),
        exif=gain, icc_profile=srgb * 120,
    )  # fmt: skip
    title = f"<dc:title>{'w' * 90000}</dc:title>"
    write_photo(folder / "long.jpg", replace(full, xmp=made.packet("", title)))
    small = Image.fromarray(made.picture())
    notes = {"icc_profile": srgb, "exif": gain}
    small.quantize(9).save(folder / "palette.png", transparency=3, **notes)
    small.convert("1").save(folder / "one.png")
    small.convert("I;16").save(folder / "grey16.png")
    small.convert("CMYK").save(folder / "cmyk.jpg", **notes)
    small.save(folder / "progressive.jpg", progressive=True, comment=b"c", **notes)
    for name, mode, how in (("cmyk", "CMYK", "tiff_lzw"), ("ycc", "RGB", "jpeg"), ("pal", "P", "packbits")):
        small.convert(mode).save(folder / f"{name}.tif", compression=how)
    small.convert("L").save(folder / "fax.tif")
    small.quantize(9).save(folder / "palette.gif", comment=b"c", transparency=1)
    small.quantize(9).save(folder / "palette.bmp")
    small.convert("RGBA").save(folder / "a.tga", compression="tga_rle")
    small.save(folder / "a.jp2")
    tags = [(274, 3, 1, 6, True), (700, 1, len(xmp), xmp, True), (33723, 7, 20, made.CAPTION[:20], True)]
    tifffile.imwrite(folder / "big.tif", made.picture(), photometric="rgb", bigtiff=True, extratags=tags)
    tifffile.imwrite(
        folder / "tiles.tif", made.picture("uint16"), photometric="rgb", tile=(16, 16), byteorder=">",
        compression="lzw", predictor=True, extratags=tags,
    )  # fmt: skip
    tifffile.imwrite(folder / "planes.tif", np.moveaxis(made.picture(), 2, 0), photometric="rgb")
    if ".avif" in Image.registered_extensions():
        small.save(folder / "a.avif", xmp=xmp, **notes)
    if importlib.util.find_spec("pillow_heif"):
        from pillow_heif import from_pillow

        from_pillow(small).save(folder / "a.heic", xmp=xmp, **notes)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mutant(number: int, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """Make damaged photo `number`: its file name and bytes; the same ones for the same number."""
    draw = random.Random(number)
    names = sorted(whole)
    name = names[number % len(names)]
    parts = split(whole[name])
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(parts) > 1 and draw.random() < 0.95, len(parts))
        way = draw.random()
        if len(parts[at]) in FIELDS:
            parts[at] = damaged(parts[at], draw)[: len(parts[at])].ljust(len(parts[at]), b"\0")
        elif way < 0.1:
            parts.insert(draw.randrange(len(parts) + 1), parts[at])
        elif way < 0.15 and len(parts) > 1:
            del parts[at]
        elif way < 0.25:
            other = split(whole[draw.choice([one for one in names if one[-4:] == name[-4:]])])
            parts.insert(at, draw.choice(other))
        else:
            parts[at] = mended(damaged(parts[at], draw), draw)
    data = b"".join(parts)
    if draw.random() < 0.08:
        data = data[: draw.randrange(len(data) + 1)]
    return f"{number}{Path(name).suffix}", data


def split(data: bytes) -> list[bytes]:
    """Cut a file where its chunks, segments or boxes begin; one piece for formats without such."""
    if data.startswith(PNG):
        start, head, size = 8, 8, lambda at: 12 + struct.unpack_from(">I", data, at)[0]
    elif data.startswith(b"\xff\xd8"):
        start, head, size = 2, 4, lambda at: _segment(data, at)
    elif data.startswith(b"RIFF"):
        start, head, size = 12, 8, lambda at: 8 + (struct.unpack_from("<I", data, at + 4)[0] + 1) // 2 * 2
    elif data[4:8] == b"ftyp":
        start, head, size = 0, 8, lambda at: struct.unpack_from(">I", data, at)[0]
    elif data[:4] in tiff.MAGIC:
        return _directory(data)
    else:
        return [data[:10], data[10:]]
    ends = [0, start] if start else [0]
    while ends[-1] + head <= len(data):
        ends.append(ends[-1] + max(1, size(ends[-1])))
    return [data[a:b] for a, b in itertools.pairwise([*ends, len(data)]) if a < b]


def _directory(data: bytes) -> list[bytes]:
    """Cut a TIFF before and behind each field of its first directory."""
    head = exif.header(data[:16])
    if head is None:
        return [data]
    first = head.first + head.counter.size
    count = head.counter.unpack_from(data, head.first)[0]
    ends = [0, head.first, *(first + head.width * number for number in range(count + 1)), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends) if a < b]


def _segment(data: bytes, at: int) -> int:
    return len(data) if data[at + 1] == jpeg.SOS else 2 + struct.unpack_from(">H", data, at + 2)[0]


def damaged(part: bytes, draw: random.Random) -> bytes:
    """Change a few bytes of a piece, mostly near its beginning, where the structure is."""
    data = bytearray(part)
    for _ in range(draw.choice((1, 1, 2, 5, 30))):
        at = draw.randrange(min(len(data), draw.choice((16, 64, 400, 1 << 30))) + 1)
        way = draw.random()
        if way < 0.35:
            size, order = draw.choice((1, 2, 4)), draw.choice(("little", "big"))
            number = draw.choice(NUMBERS) % 256**size
            data[at : at + size] = number.to_bytes(size, order)
        elif way < 0.8:
            data[at : at + 1] = bytes((draw.choice((0, 32, 255, draw.randrange(256))),))
        elif way < 0.87:
            del data[at : at + draw.choice((1, 4, 100))]
        elif way < 0.94:
            data[at:at] = draw.choice((b"\0", b"<", b"\xff\xd8", b"6", data[at : at + 50], bytes(70000)))
        elif part[4:8] in (b"zTXt", b"iCCP", b"iTXt", b"IDAT"):
            key = draw.choice((b"a\0\0", b"a\0\1\0\0\0", b"Raw profile type iptc\0\0", b""))
            data[8:] = key + zlib.compress(b"4 " * 10_000_000, 1) + bytes(4)
    return bytes(data)


def mended(part: bytes, draw: random.Random) -> bytes:
    """Make length and checksum of a changed PNG chunk or JPEG segment right again, in most cases."""
    if draw.random() < 0.2 or len(part) < 12:
        return part
    if part[4:8].isalpha() and not part[:1].isalpha():
        body = part[4:-4]
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    if part[0] == 0xFF and part[1] in (*range(0xC0, 0xD0), *range(0xDB, 0xF0), 0xFE) and len(part) < 65538:
        return part[:2] + struct.pack(">H", len(part) - 2) + part[4:]
    return part


def put(folder: Path, name: str, data: bytes) -> Path:
    """Write one file."""
    (folder / name).write_bytes(data)
    return folder / name


def clear(folder: Path) -> None:
    """Remove what a try left."""
    for path in folder.iterdir():
        path.unlink()


def claimed(path: Path) -> int:
    """Bytes of the decoded picture that a file's header announces; 0 for what Pillow does not know."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return image.width * image.height * len(image.getbands()) * (2 if "16" in image.mode else 1)
    except Exception:  # as many kinds as there are decoders
        return 0


def size_of(photo: Photo | None) -> int:
    """Bytes of a photo's samples."""
    parts = (photo.pixels, photo.alpha) if photo else ()
    return sum(part.nbytes for part in parts if part is not None)


def check(path: Path, measure: Callable[..., Any]) -> str:
    """Read a photo, write it in every format, and read it back.

    Args:
        measure: (step, action, the action's result -> decoded bytes) -> the result.
    Returns:
        "read", or "refused: " and why.
    Raises:
        AssertionError: what comes back is not what was written.
    """
    try:
        photo = measure("read", lambda: read_photo(path), lambda read: max(claimed(path), size_of(read)))
    except ImageError as error:
        return _refusal(error)
    lines = list(photo.notes)
    for suffix in TARGETS:
        target = path.with_name("out" + suffix)
        opaque = replace(photo, alpha=None) if suffix in (".jpg", ".bmp") else photo
        if max(photo.pixels.shape) > {".webp": 16383, ".jpg": 65500}.get(suffix, 1 << 30):
            continue
        write = partial(write_photo, target, opaque)
        lines += measure(f"write {suffix}", write, lambda told: size_of(photo))
        again = read_photo(target)
        lines += again.notes
        assert not any("damaged" in note for note in again.notes), (suffix, again.notes)
        assert again.pixels.shape == photo.pixels.shape, (suffix, again.pixels.shape, photo.pixels.shape)
        if suffix == ".tif" or (suffix == ".png" and photo.pixels.dtype != np.float32):
            assert np.array_equal(again.pixels, photo.pixels, equal_nan=suffix == ".tif"), suffix
            assert (again.alpha is None) == (photo.alpha is None), suffix
        if suffix == ".png":
            kept = (again.exif, again.xmp, again.text.keys() >= photo.text.keys(), again.comments)
            assert kept[0] is not None or not photo.exif, (suffix, "EXIF lost")
            assert kept[1] is not None or not photo.xmp, (suffix, "XMP lost")
    assert not any("\n" in line or len(line) > 400 for line in lines), lines
    return "read"


def _refusal(error: ImageError) -> str:
    """A refusal without names and numbers, to count by."""
    text = str(error)
    assert "\n" not in text and len(text) < 500, text
    kinds = ("incomplete", "is no picture", "frames", "pages", "px: at most", "pixels: split", "channels",
             "samples", "raw file", "is empty", "into memory", "convert", "export it")  # fmt: skip
    return "refused: " + next((kind for kind in kinds if kind in text), text)
