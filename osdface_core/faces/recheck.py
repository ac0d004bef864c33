"""A second, closer look at faces that are tilted or doubtful.

Detectors are trained on upright faces. Beyond some 30 degrees their landmarks drift, and a face on its side
or upside down often passes with landmarks in upright order, which would turn the crop the wrong way. So each
such face is cut out of the photo itself, turned upright, and detected again; doubtful ones in four turns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from .align import cut, fit_similarity
from .merge import merge_rows
from .regions import Photo, translation
from .views import View, rows_to_photo

if TYPE_CHECKING:
    from .detect import Detector

PATCH = 176
"""Side of the patch that is looked at [px]."""
CONTEXT = 2.6
"""Side of the patch in units of the face."""
TILTED = 20.0
"""Faces that lean more than this are looked at again [degrees]."""
BATCH = 32


def roll_of(row: np.ndarray) -> float:
    """How far a face leans clockwise [degrees], from its landmarks; 0 where they fit no face."""
    points = row[5:15].reshape(5, 2)
    if np.ptp(points, axis=0).max() < 1e-3:
        return 0.0
    matrix = fit_similarity(points)
    return -math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


def recheck(photo: Photo, rows: np.ndarray, net: Detector, device: torch.device) -> tuple[np.ndarray, int]:
    """Look again where needed.

    Args:
        rows: (n, 15) photo px.
    Returns:
        Rows with better landmarks and scores where a closer look found the face; doubtful ones that it did
        not confirm are left out. And the quarter turn counter-clockwise (0, 90, 180, 270) that puts most of
        the lying faces upright: worth a look at the whole photo.
    """
    rolls = np.array([roll_of(row) for row in rows])
    weak = rows[:, 4] < net.sure
    found: dict[int, np.ndarray] = {}
    first = [i for i in range(len(rows)) if weak[i] or abs(rolls[i]) > TILTED]
    for number, row in zip(
        first, look_closer(photo, rows, [(i, rolls[i]) for i in first], net, device), strict=True
    ):
        if row is not None:
            found[number] = row
    # Hair and hands pass as weak faces in one turn or another: a turned face must be a sure one.
    doubtful = [i for i in first if weak[i] and (i not in found or found[i][4] < net.sure)]
    jobs = [(i, rolls[i] + turn) for i in doubtful for turn in (90, 180, 270)]
    for (number, _), row in zip(jobs, look_closer(photo, rows, jobs, net, device), strict=True):
        if row is not None and row[4] >= net.sure and (number not in found or row[4] > found[number][4]):
            found[number] = row
    keep = [i for i in range(len(rows)) if i in found or not weak[i]]
    better = [found[i] if i in found else rows[i] for i in keep]
    lying = [round(roll_of(row) / 90) % 4 * 90 for row in found.values()]
    turn = max(set(lying), key=lying.count) if any(lying) else 0
    return merge_rows([np.array(better).reshape(-1, 15)]), turn


def look_closer(
    photo: Photo, rows: np.ndarray, jobs: list[tuple[int, float]], net: Detector, device: torch.device
) -> list[np.ndarray | None]:
    """Detect on one patch per (face, roll); the row nearest to the patch's middle, in photo px, or None."""
    results: list[np.ndarray | None] = []
    for start in range(0, len(jobs), BATCH):
        views = [
            patch_view(photo, rows[number], angle, device) for number, angle in jobs[start : start + BATCH]
        ]
        patches = torch.stack([view.image for view in views])
        results += [central(*pair) for pair in zip(net(patches, PATCH / CONTEXT / 2), views, strict=True)]
    return results


def patch_view(photo: Photo, row: np.ndarray, roll: float, device: torch.device) -> View:
    """The surroundings of a face, turned by its roll, at the size the detector likes best."""
    size = max(row[2] - row[0], row[3] - row[1], 1.0)
    middle = (row[:2] + row[2:4]) / 2
    angle, scale = math.radians(roll), PATCH / CONTEXT / size
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    centre = (PATCH - 1) / 2
    to_patch = translation(centre, centre) @ turn @ translation(-middle[0], -middle[1])
    return View(cut(photo, to_patch, PATCH, device).clamp(0, 1), np.linalg.inv(to_patch))


def central(rows: np.ndarray, view: View) -> np.ndarray | None:
    """The face in the middle of the patch, if there is one of about the expected size."""
    middle = (rows[:, :2] + rows[:, 2:4]) / 2 - (PATCH - 1) / 2
    side = np.maximum(rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1]) * CONTEXT / PATCH
    good = (np.linalg.norm(middle, axis=1) < 0.35 * PATCH / CONTEXT) & (side > 0.5) & (side < 1.8)
    if not good.any():
        return None
    return rows_to_photo(rows[good][:1], view)[0]
