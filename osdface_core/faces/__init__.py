"""Faces of a photo: find them, choose among them, cut them out aligned, put the restored ones back."""

from .align import align
from .detect import detect
from .face import CROP_SIZE, FFHQ_TEMPLATE, Face
from .paste import paste
from .select import select

__all__ = ["CROP_SIZE", "FFHQ_TEMPLATE", "Face", "align", "detect", "paste", "select"]
