"""Faces at known places, for the tests of warps."""

import math

import numpy as np

from osdface_core.faces import FFHQ_TEMPLATE, Face
from osdface_core.faces.align import affine_rows
from osdface_core.faces.geometry import inverse

TEMPLATE = np.array(FFHQ_TEMPLATE)


def place(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    """2x3, crop px -> photo px: turned by `degrees`, `scale` photo px per crop px, crop middle at (x, y)."""
    angle = math.radians(degrees)
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.column_stack((linear, np.array([x, y]) - linear @ [255.5, 255.5]))


def face_at(scale: float, degrees: float, x: float, y: float) -> Face:
    """The face whose crop lies in the photo as `place` says."""
    to_photo = place(scale, degrees, x, y)
    points = TEMPLATE @ to_photo[:, :2].T + to_photo[:, 2]
    low, high = points.min(axis=0) - 90 * scale, points.max(axis=0) + 90 * scale
    marks = tuple((float(a), float(b)) for a, b in points)
    return Face((*low.tolist(), *high.tolist()), marks, 0.99, affine_rows(inverse(to_photo)))
