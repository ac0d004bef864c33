"""Photo files: read with every bit and all metadata, write back the same way, whole or not at all."""

from .find import PhotoSearch, is_photo, unread_photos, within
from .formats import SUFFIXES, is_unwritable, readable, written_suffix
from .photo import Photo, from_unit, to_unit
from .read import read_photo
from .write import check_alpha, write_photo

__all__ = [
    "SUFFIXES",
    "Photo",
    "PhotoSearch",
    "check_alpha",
    "from_unit",
    "is_photo",
    "is_unwritable",
    "read_photo",
    "readable",
    "to_unit",
    "unread_photos",
    "within",
    "write_photo",
    "written_suffix",
]
