"""Photo files: read with every bit and all metadata, write back the same way, whole or not at all."""

from .photo import Photo, from_unit, to_unit
from .read import LARGEST, read_photo
from .write import SUFFIXES, write_photo

__all__ = ["LARGEST", "SUFFIXES", "Photo", "from_unit", "read_photo", "to_unit", "write_photo"]
