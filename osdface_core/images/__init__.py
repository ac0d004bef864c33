"""Photo files: read with every bit and all metadata, write back the same way, whole or not at all."""

from .formats import SUFFIXES, is_unwritable, readable, unread_reason, written_suffix
from .photo import Photo, from_unit, to_unit
from .read import LARGEST, read_photo
from .write import check_alpha, write_photo

__all__ = [
    "LARGEST",
    "SUFFIXES",
    "Photo",
    "check_alpha",
    "from_unit",
    "is_unwritable",
    "read_photo",
    "readable",
    "to_unit",
    "unread_reason",
    "write_photo",
    "written_suffix",
]
