"""The one list of picture formats: which file suffixes are read, which are written, and what others need."""

from __future__ import annotations

import importlib.util
from functools import cache

from PIL import Image, features

from ..file_kinds import VIDEOS

SUFFIXES = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
}
"""Formats that are written, by file suffix."""
READ_ONLY = (".gif", ".tga", ".mpo", ".jp2", ".j2k", ".jpf", ".jpx")
"""Suffixes that Pillow always reads."""
HEIC = (".heic", ".heif", ".hif", ".heics", ".heifs")
AVIF = (".avif", ".avifs")
OTHERS = (
    *(".jxl", ".jxr", ".psd", ".psb", ".xcf", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".nrw"),
    *(".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
"""Suffixes of photos that nothing here reads."""
HEIC_MISSING = 'needs the extra for HEIC: pip install "osdface[heic]"'
AVIF_MISSING = "needs a Pillow with AVIF: pip install -U pillow"


@cache
def readable() -> frozenset[str]:
    """List the suffixes of photos that can be read with the packages that are here."""
    more = HEIC if importlib.util.find_spec("pillow_heif") else ()
    more += AVIF if "avif" in features.get_supported() else ()
    return frozenset((*SUFFIXES, *READ_ONLY, *more))


def unread_reason(suffix: str) -> str:
    """Say why photos or videos of a suffix are not read and what to do; empty for readable and for others."""
    suffix = suffix.lower()
    if suffix in readable():
        return ""
    if suffix in HEIC:
        return HEIC_MISSING
    if suffix in AVIF:
        return AVIF_MISSING
    if suffix in VIDEOS:
        return "videos; osdface restore takes them by name"
    return "not a format that is read: export it as PNG or TIFF" if suffix in OTHERS else ""


def is_unwritable(suffix: str) -> bool:
    """Tell whether a suffix names a picture format that is not written here."""
    suffix = suffix.lower()
    if suffix in SUFFIXES or not suffix:
        return False
    return suffix in (*READ_ONLY, *HEIC, *AVIF, *OTHERS) or suffix in Image.registered_extensions()


def written_suffix(suffix: str) -> str:
    """Choose the suffix of a photo's result: its own, or .png where that is only read."""
    return suffix if suffix.lower() in SUFFIXES or not suffix else ".png"
