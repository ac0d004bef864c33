"""Faces of a photo: find them, cut them out aligned, put the restored ones back."""

from .align import align
from .detect import detect
from .face import CROP_SIZE, FFHQ_TEMPLATE, Face
from .paste import paste

__all__ = ["CROP_SIZE", "FFHQ_TEMPLATE", "Face", "align", "detect", "paste"]
