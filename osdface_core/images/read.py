"""Read photo files upright, in their own bit depth, with their metadata."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from ..errors import ImageError
from . import exif, high_depth
from .photo import Photo

LARGEST = 178_956_970
"""Most pixels of a photo: Pillow's limit against decompression bombs; 12,000 x 9,000 is well inside."""
STRIP = 2**22
"""Pixels that are turned into an array at once."""
TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def read_photo(path: str | Path) -> Photo:
    """Read a photo upright, in its own bit depth.

    8 and 16 bits of PNG and TIFF and float TIFF keep their depth. Palette, CMYK (through its profile) and
    other colour spaces become 8-bit RGB.

    Raises:
        ImageError: one line: missing, no picture, damaged, too large, or several pictures in one file.
    """
    path = Path(path).expanduser()
    head = _head(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large but allowed sizes, odd metadata
        try:
            photo = _read_tiff(path) if head[:4] in TIFF_MAGIC else None
            return photo or _read_pillow(path, head)
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(f"{path} has more than {LARGEST} pixels: split or shrink it first") from error
        except Image.UnidentifiedImageError as error:
            raise ImageError(f"{path} is no picture: expected PNG, JPEG, WebP, TIFF or BMP") from error
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
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{path} cannot be opened ({reason}): check name and permissions") from error
    if not head:
        raise ImageError(f"{path} is empty: the file is damaged or incomplete")
    return head


def _read_tiff(path: Path) -> Photo | None:
    picture = high_depth.read_tiff(path, LARGEST)
    if picture is None:
        return None
    block = exif.from_tiff(path)
    return _assemble(picture.plane, block, picture.xmp, icc=picture.icc, format="TIFF", dpi=picture.dpi)


def _read_pillow(path: Path, head: bytes) -> Photo:
    with Image.open(_plain_tiff(path) if head[:4] in TIFF_MAGIC else path) as image:
        if image.width * image.height > LARGEST:
            raise Image.DecompressionBombError
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise ImageError(f"{path} holds {frames} frames: export the one to restore as its own file")
        image.load()
        icc = image.info.get("icc_profile")
        plane, icc = (high_depth.read_png(path), icc) if high_depth.is_deep_png(head) else _decode(image)
        kind = "JPEG" if image.format == "MPO" else image.format or ""  # phones append a second picture
        text = getattr(image, "text", {})
        about = image.info
    del image  # Pillow's own copy: turning the picture upright takes another one
    xmp = about.get("xmp")
    return _assemble(
        plane,
        exif.from_tiff(path) if kind == "TIFF" else about.get("exif"),
        xmp.encode() if isinstance(xmp, str) else xmp,
        icc=icc,
        format=kind,
        dpi=_dpi(about.get("dpi")),
        text={k: str(v) for k, v in text.items() if "adobe.xmp" not in k},
        lossless=kind != "JPEG" and not (kind == "WEBP" and _lossy_webp(path)),
    )


def _lossy_webp(path: Path) -> bool:
    """Whether a WebP holds a lossy picture: the name of its chunk comes before its pixels."""
    with path.open("rb") as file:
        return b"VP8 " in file.read(1 << 20)


def _plain_tiff(path: Path) -> io.BytesIO:
    """The file's bytes, saying upright: Pillow turns TIFFs itself, and wrongly where they are not RGB."""
    return io.BytesIO(exif.reset_orientation(path.read_bytes()) or b"")


def _decode(image: Image.Image) -> tuple[high_depth.Plane, bytes | None]:
    """Samples of a loaded 8-bit (or 16-bit grey) picture, and the profile that still fits them."""
    icc = image.info.get("icc_profile")
    if image.mode == "1" or (image.mode == "L" and "transparency" not in image.info):
        return high_depth.Plane(_samples(image, "L")[..., None], None), icc
    if image.mode.startswith("I"):
        return high_depth.Plane(_sixteen(image)[..., None], None), icc
    if image.mode == "F":
        return high_depth.Plane(np.array(image, dtype=np.float32)[..., None], None), icc
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        return high_depth.Plane(_samples(_to_rgb(image, icc), "RGB"), None), None
    if image.mode in ("LA", "La", "L"):
        data = _samples(image, "LA")
        return high_depth.Plane(data[..., :1], data[..., 1]), icc
    if image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        data = _samples(image, "RGBA")
        return high_depth.Plane(data[..., :3], data[..., 3]), icc
    return high_depth.Plane(_samples(image, "RGB"), None), icc


def _samples(image: Image.Image, mode: str) -> np.ndarray:
    """The picture as an array of `mode`, strip by strip: at once, Pillow holds it three more times."""
    bands = len(mode)
    samples = np.empty((image.height, image.width, bands)[: 3 if bands > 1 else 2], np.uint8)
    step = max(1, STRIP // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        samples[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)).convert(mode))
    return samples


def _sixteen(image: Image.Image) -> np.ndarray:
    data = np.array(image)
    if data.min() < 0 or data.max() > 65535:
        raise ImageError("32-bit samples: expected 8 or 16 bits or float; convert the picture")
    return data.astype(np.uint16)


def _to_rgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Through the picture's own profile if it has one, else by the plain formula."""
    if icc and image.mode in ("CMYK", "LAB"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile: the plain formula is what viewers use then, too
    return image.convert("RGB")


def _assemble(plane: high_depth.Plane, block: bytes | None, xmp: bytes | None, **rest: Any) -> Photo:
    """Turn samples upright, make three channels of one, and reset the orientation in the metadata."""
    turn = exif.orientation(block)
    samples, alpha = plane.samples, plane.alpha
    if samples.dtype.kind == "f":
        samples = samples.astype(np.float32)
        alpha = None if alpha is None else alpha.astype(np.float32)
    grey = samples.shape[2] == 1
    if samples.dtype.byteorder not in ("=", "|"):
        samples = samples.astype(samples.dtype.newbyteorder("="))
        alpha = None if alpha is None else alpha.astype(samples.dtype)
    pixels = np.repeat(samples, 3, axis=2) if grey else samples
    return Photo(
        pixels=np.ascontiguousarray(upright(pixels, turn)),
        alpha=None if alpha is None else np.ascontiguousarray(upright(alpha, turn)),
        grey=grey,
        exif=exif.reset_orientation(block),
        xmp=exif.reset_xmp_orientation(xmp),
        premultiplied=plane.premultiplied,
        **rest,
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
