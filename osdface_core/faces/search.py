"""Search a photo for faces: the whole, tiles, turned copies; and each face again, closely, in four turns.

Detectors are trained on upright faces. Beyond some 30 degrees their landmarks drift, and a face on its side
or upside down often passes, even with a high score, with landmarks in upright order, which would turn the
crop the wrong way. But of the four turns of one face the right one has the highest score (98 of 100 aligned
portraits and more, sharp or degraded). So a face is cut out, looked at in four turns, and the best one
counts. A doubtful one that no turn confirms was no face.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..photo_array import PhotoArray, TensorPhoto
from .align import cut, fit_similarity
from .geometry import translation
from .nms import drop_shadowed, nms
from .views import View, drop_cut, padded, rows_to_photo, tiles, turned, whole

RELATIVE = 64
"""The first look finds faces down to this fraction of the photo's longer side."""
TILE_FACES = 48
"""Side of a tile in units of the smallest face."""
CROWD = 3
"""This many faces near the limit of the first look mean that there may be smaller ones."""


PATCH = 176
"""Side of the patch that is looked at [px]."""
CONTEXT = 2.6
"""Side of the patch in units of the face."""
TILTED = 20.0
"""A face that leans by more than this in its patch is cut out once more at its new angle [degrees]."""
MARGIN = 0.003
"""By how much another turn's score must exceed the upright one's."""
SAMPLE = 6
"""So many of the largest faces are looked at again even if nothing is wrong with them; all, if one was."""
BATCH = 32
"""Patches per pass of the detector."""
Look = tuple[np.ndarray, float]
"""A row (15) in photo px and the angle to undo, clockwise [degrees]."""


class Detector(Protocol):
    """What `Mtcnn` and `RetinaFace` have in common."""

    smallest: float
    sure: float

    def __call__(self, images: Tensor, min_size: float = ...) -> list[np.ndarray]:
        """(B, 3, H, W) unit range -> per image rows of box 4, score, landmarks 10 [px]."""
        ...


def search(
    photo: PhotoArray, net: Detector, min_face: float, threshold: float, effort: str, device: torch.device
) -> np.ndarray:
    """Merge all looks at one photo: rows (n, 15) in photo px."""
    base = whole(photo, net.smallest * RELATIVE, device)
    rows = look(net, [base], min_face)
    if effort == "fast":
        return rows
    rows, turn = recheck(photo, base, rows, net, device)
    if turn:  # somebody lies on the side: others may, too
        rows = nms([rows, look_and_check(photo, base, net, [turned(base, turn)], min_face, device)])
    if effort == "thorough" or not (rows[:, 4] >= threshold).any():
        rows = nms([rows, look_and_check(photo, base, net, harder(base), min_face, device)])
    detail = tile_scale(photo, rows, base, net, min_face, effort)
    if detail > 1 / base.scale * 1.05:
        side = round(net.smallest * TILE_FACES)
        parts = tiles(photo, detail, side, round(side / 4), device)
        rows = nms([rows, look_and_check(photo, base, net, parts, min_face, device)])
    return drop_shadowed(rows, net.sure)


def look_and_check(
    photo: PhotoArray, base: View, net: Detector, views: Iterable[View], min_face: float, device: torch.device
) -> np.ndarray:
    """Detect on further views; what they found goes through the closer look, too."""
    return recheck(photo, base, look(net, views, min_face), net, device)[0]


def harder(base: View) -> list[View]:
    """List further views for when the plain copy shows nothing: a wide frame around it, turned copies."""
    return [padded(base), *(turned(base, angle) for angle in (90, 270, 180, 45, 315))]


def tile_scale(
    photo: PhotoArray, rows: np.ndarray, base: View, net: Detector, min_face: float, effort: str
) -> float:
    """View px per photo px at which tiles are searched; that of the base or less means: no tiles."""
    if min_face > 0:
        return min(1.0, 1.25 * net.smallest / min_face)
    sides = np.maximum(rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1]) / base.scale
    crowd = np.count_nonzero(sides < 1.5 * net.smallest) >= CROWD
    return min(1.0, 2 / base.scale) if crowd or not len(rows) or effort == "thorough" else 0.0


def look(net: Detector, views: Iterable[View], min_face: float) -> np.ndarray:
    """Run the detector on each view; rows in photo px, those of neighbouring views merged."""
    parts = []
    for view in views:
        smallest = max(net.smallest, min_face / view.scale)
        rows = drop_cut(net(view.image[None], smallest)[0], view)
        parts.append(rows_to_photo(rows, view))
    return nms(parts)


def roll_of(row: np.ndarray) -> float:
    """Measure how far a face leans clockwise [degrees], from its landmarks; 0 where they fit no face."""
    points = row[5:15].reshape(5, 2)
    if np.ptp(points, axis=0).max() < 1e-3:
        return 0.0
    matrix = fit_similarity(points)
    return -math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


def recheck(
    photo: PhotoArray, base: View, rows: np.ndarray, net: Detector, device: torch.device
) -> tuple[np.ndarray, int]:
    """Look again at doubtful, tilted and the largest faces; at all if one of these was turned.

    Args:
        base: the whole photo as a view; large faces are cut out of it, small ones out of the photo itself.
        rows: (n, 15) photo px.
    Returns:
        Rows with better landmarks and scores. Doubtful ones that no turn confirmed are left out. And the
        quarter turn counter-clockwise (90, 180, 270) that puts most of the lying faces upright, which is
        worth a look at the whole photo; 0 if none lies.
    """
    rolls = np.array([roll_of(row) for row in rows])
    suspects = (rows[:, 4] < net.sure) | (np.abs(rolls) > TILTED)
    suspects[np.argsort(-(rows[:, 2] - rows[:, 0]), kind="stable")[:SAMPLE]] = True
    result, misjudged = _settle(photo, base, rows[suspects], net, device)
    if misjudged:
        result += _settle(photo, base, rows[~suspects], net, device)[0]
    else:
        result += list(rows[~suspects])
    lying = [turn for row in result if (turn := round(roll_of(row) / 90) % 4 * 90)]
    turn = max(sorted(set(lying)), key=lying.count) if lying else 0
    return drop_shadowed(nms([np.array(result).reshape(-1, 15)]), net.sure), turn


def _settle(
    photo: PhotoArray, base: View, rows: np.ndarray, net: Detector, device: torch.device
) -> tuple[list[np.ndarray], bool]:
    """Find the right turn of each row; also whether that was another one for any of them."""
    jobs = [(row, roll_of(row)) for row in rows]
    looks = look_closer(photo, base, jobs, net, device, turns=4)
    chosen = [best_turn(row, found, net.sure) for row, found in zip(rows, looks, strict=True)]
    kept = [(row, angle) for row, (_, angle) in zip(chosen, jobs, strict=True) if row is not None]
    again = [i for i, (row, angle) in enumerate(kept) if abs(_difference(roll_of(row), angle)) > TILTED]
    result = [row for row, _ in kept]
    second = look_closer(photo, base, [(result[i], roll_of(result[i])) for i in again], net, device, turns=1)
    for i, found in zip(again, second, strict=True):
        result[i] = found[0] if found[0] is not None else result[i]
    return result, any(abs(_difference(roll_of(row), angle)) > 2 * TILTED for row, angle in kept)


def best_turn(row: np.ndarray, found: list[np.ndarray | None], sure: float) -> np.ndarray | None:
    """Choose the row to believe: upright as found, upright in the patch, or one of the other turns."""
    upright = found[0]
    if row[4] >= sure and (upright is None or upright[4] < row[4] - MARGIN):
        upright = row  # a patch shows less of the surroundings, which a cut-off face needs
    score = row[4] if upright is None else upright[4]
    others = [other for other in found[1:] if other is not None and other[4] >= max(sure, score + MARGIN)]
    return max(others, key=lambda other: other[4]) if others else upright


def look_closer(
    photo: PhotoArray, base: View, jobs: list[Look], net: Detector, device: torch.device, *, turns: int
) -> list[list[np.ndarray | None]]:
    """Find, per job and turn (0, 90, 180, 270 degrees from its angle), the face in the patch's middle."""
    found: list[list[np.ndarray | None]] = []
    step = max(1, BATCH // turns)
    for start in range(0, len(jobs), step):
        upright = [patch_view(photo, base, *job, device) for job in jobs[start : start + step]]
        views = [turned_quarter(view, turn) for view in upright for turn in range(turns)]
        results = net(torch.stack([view.image for view in views]), PATCH / CONTEXT / 2)
        rows = [central(*pair) for pair in zip(results, views, strict=True)]
        found += [rows[i : i + turns] for i in range(0, len(rows), turns)]
    return found


def patch_view(photo: PhotoArray, base: View, row: np.ndarray, roll: float, device: torch.device) -> View:
    """Cut out a face's surroundings, turned by its roll, at the size the detector likes best."""
    size = max(row[2] - row[0], row[3] - row[1], 1.0)
    middle = (row[:2] + row[2:4]) / 2
    angle, scale = math.radians(roll), PATCH / CONTEXT / size
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    centre = (PATCH - 1) / 2
    to_patch = translation(centre, centre) @ turn @ translation(-middle[0], -middle[1])
    if scale * base.scale < 1:  # larger in the view than in the patch
        image = cut(TensorPhoto(base.image), to_patch @ base.to_photo, PATCH, device, outside=0.5)
    else:
        image = cut(photo, to_patch, PATCH, device, outside=0.5)
    return View(image.clamp(0, 1), np.linalg.inv(to_patch))


def turned_quarter(view: View, turn: int) -> View:
    """Turn a patch counter-clockwise by `turn` times 90 degrees: `turned` without its resampling."""
    centre = (PATCH - 1) / 2
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turn]
    quarter = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    back = translation(centre, centre) @ quarter @ translation(-centre, -centre)
    return View(torch.rot90(view.image, turn, (1, 2)), view.to_photo @ back)


def central(rows: np.ndarray, view: View) -> np.ndarray | None:
    """Find the face in the middle of the patch, if one has about the expected size, in photo px."""
    middle = (rows[:, :2] + rows[:, 2:4]) / 2 - (PATCH - 1) / 2
    side = np.maximum(rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1]) * CONTEXT / PATCH
    good = (np.linalg.norm(middle, axis=1) < 0.35 * PATCH / CONTEXT) & (side > 0.5) & (side < 1.8)
    if not good.any():
        return None
    return rows_to_photo(rows[good][:1], view)[0]


def _difference(a: float, b: float) -> float:
    return (a - b + 180) % 360 - 180
