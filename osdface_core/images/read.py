"""Read photo files upright, in their own bit depth, with their metadata."""

from __future__ import annotations

import importlib
import io
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from . import exif, formats, jpeg, png, tiff, xmp
from .metadata import Metadata
from .photo import Photo
from .plane import Plane, check_size, from_pillow, split_alpha

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
LOSSY = ("JPEG", "AVIF", "HEIF", "JPEG2000")


def read_photo(path: str | Path) -> Photo:
    """Read a photo upright, in its own bit depth.

    8 and 16 bits of PNG and TIFF, float TIFF and HEIC of 10 and 12 bits (as 16) keep their depth. Palette,
    CMYK (through its profile) and other colour spaces become 8-bit RGB. Metadata that is damaged or describes
    what is not read is left out; `Photo.notes` names it.

    Raises:
        ImageError: one line: missing, no picture, damaged, too large, several pictures in one file, or a
            format that needs another package.
    """
    path = Path(path).expanduser()
    head = _head(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large but allowed sizes, odd metadata
        try:
            return _read(path, head)
        except ImageError as error:
            raise ImageError(f"{path} {error}") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"{path} has too many pixels: split or shrink it first") from error
        except Image.UnidentifiedImageError as error:
            reason = formats.unread_reason(path.suffix)
            said = (
                f": {path.suffix} {reason}"
                if reason
                else " is no picture: expected PNG, JPEG, WebP, TIFF or BMP"
            )
            raise ImageError(f"{path}{said}") from error
        except MemoryError as error:
            raise ImageError(f"{path} does not fit into memory: shrink it first") from error
        except Exception as error:  # each decoder raises its own kinds for damaged files
            reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
            raise ImageError(
                f"{path} cannot be read ({reason}): the file is damaged or incomplete"
            ) from error


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise ImageError(f"{path} is a folder: expected a photo")
    if path.exists() and not path.is_file():  # opening a pipe waits for somebody who writes, for ever
        raise ImageError(f"{path} is a pipe or a device: save it as a file first")
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{path} cannot be opened ({reason}): check name and permissions") from error
    if not head:
        raise ImageError(f"{path} is empty: the file is damaged or incomplete")
    return head


def _read(path: Path, head: bytes) -> Photo:
    if head.startswith(png.MAGIC):
        return _assemble(*png.read(path.read_bytes()), "PNG")
    if head[:4] in tiff.MAGIC:
        return _assemble(*tiff.read(path), "TIFF")
    if head[:3] == b"\xff\xd8\xff":
        return _assemble(*_read_jpeg(path), "JPEG", lossless=False)
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS and b"avif" not in head:
        return _assemble(*_read_heic(path), "HEIF", lossless=False)
    return _read_pillow(path)


def _read_jpeg(path: Path) -> tuple[Plane, Metadata]:
    stream, about = jpeg.read(path.read_bytes())
    with Image.open(io.BytesIO(stream), formats=["JPEG"]) as image:
        _load(image)
        fields = {entry.tag: entry for entry in exif.fields(about.exif)}
        about.dpi = _dpi(image.info.get("dpi")) or tiff.dpi(fields, exif.byte_order(about.exif))
        return from_pillow(image, about), about


def _load(image: Image.Image) -> None:
    check_size(image.width, image.height)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"holds {frames} frames: export the one to restore as its own file")
    image.load()


def _read_pillow(path: Path) -> Photo:
    with Image.open(path) as image:
        _load(image)
        info, kind = image.info, image.format or ""
        packet, comment = info.get("xmp"), info.get("comment")
        about = Metadata(
            icc=info.get("icc_profile"),
            exif=_prefixed(info.get("exif")),
            xmp=packet.encode() if isinstance(packet, str) else packet,
            dpi=_dpi(info.get("dpi")),
            comments=(comment.encode() if isinstance(comment, str) else comment,) if comment else (),
        )
        plane = from_pillow(image, about)
    if kind == "AVIF":  # its container turns the picture, which Pillow puts into EXIF; XMP has no say
        about.xmp = xmp.reset_orientation(about.xmp)
        about.chunks = () if about.icc else _video_colors(path)
    lossy = kind in LOSSY or (kind == "WEBP" and _lossy_webp(path))
    return _assemble(plane, about, kind, lossless=not lossy)


def _prefixed(block: bytes | None) -> bytes | None:
    return exif.PREFIX + block.removeprefix(exif.PREFIX) if block else None


def _lossy_webp(path: Path) -> bool:
    """Whether a WebP holds a lossy picture: the name of its chunk comes before its pixels."""
    with path.open("rb") as file:
        return b"VP8 " in file.read(1 << 20)


def _video_colors(path: Path) -> tuple[tuple[bytes, bytes], ...]:
    """What an AVIF's `colr` box says, as PNG's cICP chunk: decoded samples are RGB of full range."""
    with path.open("rb") as file:
        _, found, rest = file.read(1 << 16).partition(b"colrnclx")
    code = bytes((rest[1], rest[3])) if len(rest) >= 4 and not rest[0] and not rest[2] else b""
    return _cicp(*code) if found and code else ()


def _cicp(primaries: int, transfer: int) -> tuple[tuple[bytes, bytes], ...]:
    """A cICP chunk; none for sRGB, for what video calls its equal, and for unknown colours (2)."""
    if 2 in (primaries, transfer) or (primaries in (1, 5, 6) and transfer in (1, 6, 13)):
        return ()
    return ((b"cICP", bytes((primaries, transfer, 0, 1))),)


def _read_heic(path: Path) -> tuple[Plane, Metadata]:
    """HEIC through pillow-heif, whose decoder turns the picture itself."""
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise ImageError(formats.HEIC_MISSING) from error
    file = pillow_heif.open_heif(path, convert_hdr_to_8bit=False, bgr_mode=False)
    image: Any = file[file.primary_index]
    check_size(*image.size)
    data = np.asarray(image)
    if data.dtype == np.uint16:  # the decoder shifts samples up to 16 bits
        bits = image.info.get("bit_depth", 16)
        top = 2**bits - 1
        data = ((data >> (16 - bits)).astype(np.uint32) * 65535 // top).astype(np.uint16)
    block = exif.reset_orientation(_prefixed(image.info.get("exif")))
    colors = image.info.get("nclx_profile") or {}
    about = Metadata(
        icc=image.info.get("icc_profile"),
        exif=exif.without_thumbnail(block),
        xmp=xmp.reset_orientation(image.info.get("xmp")),
        chunks=_cicp(colors.get("color_primaries", 2), colors.get("transfer_characteristics", 2)),
        notes=[f"its other {len(file) - 1} pictures are left out"] if len(file) > 1 else [],
    )
    return split_alpha(data[..., None] if data.ndim == 2 else data), about


def _assemble(plane: Plane, about: Metadata, kind: str, *, lossless: bool = True) -> Photo:
    """Turn samples upright, make three channels of one, and reset the orientation in the metadata."""
    turn = about.make_upright()
    grey = plane.samples.shape[2] == 1
    pixels = np.repeat(plane.samples, 3, axis=2) if grey else plane.samples
    kept = np.dtype(np.float32) if pixels.dtype.kind == "f" else pixels.dtype.newbyteorder("=")

    def finished(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(upright(array, turn), kept)

    return Photo(
        pixels=finished(pixels),
        alpha=None if plane.alpha is None else finished(plane.alpha),
        grey=grey,
        format=kind,
        lossless=lossless,
        premultiplied=plane.premultiplied,
        **vars(replace(about, notes=tuple(dict.fromkeys(about.notes)))),
    )


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1 to 8) of an (H, W, ...) array; a view where possible."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(number) for number in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if x > 0 and y > 0 else None
