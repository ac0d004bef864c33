"""Find the faces of a photo: choose the detector, search, judge and choose what was found."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..choices import DetectorName, Effort
from ..options import DetectOptions, check
from ..photo_array import PhotoArray, Pixels
from . import retinaface
from .align import affine_rows, fit_similarity
from .face import Face
from .mtcnn import Mtcnn
from .search import RELATIVE, Detector, look_closer, roll_of, search
from .select import select
from .sharpness import measure
from .views import whole

log = logging.getLogger(__name__)


def detect(
    photo: Pixels | PhotoArray,
    detector: DetectorName | Detector = "auto",
    *,
    detector_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    min_face: float = 0,
    threshold: float = 0.9,
    effort: Effort = "auto",
) -> list[Face]:
    """Find all faces.

    Args:
        photo: (3, H, W) unit tensor on any device, (H, W, 3) array of uint8, uint16 or float, or Pillow
            image.
        detector, detector_dir, threshold: as `DetectOptions` in options.py says; or a detector that lies on
            `device`.
        device: where to compute; the photo's by default. Anything but CUDA means the CPU.
        min_face: leave out faces smaller than this [px, longer side of the box]. 0 finds what shows at a
            sensible size (about 1/64 of the photo's longer side); a smaller number makes the search go into
            the photo tile by tile.
        effort: "fast" looks once; "auto" looks again at each face closely and in four turns, at tiles of
            crowds, and at turned and padded copies when nothing was found; "thorough" does all of it always.
    Returns:
        The faces, largest first; an empty list where there are none.
    Raises:
        OptionError: for an unknown detector or effort, or a number out of range.
        DetectorError: for missing weights.
        ImageError: if the photo is in another layout.
    """
    photo = PhotoArray.of(photo)
    height, width = photo.shape
    check(DetectOptions, min_face=min_face, threshold=threshold, effort=effort)
    place = detection_device(device or photo.device)
    net = load_detector(detector, detector_dir, place) if isinstance(detector, str) else detector
    rows = search(photo, net, float(min_face), threshold, effort, place)
    sides = np.maximum(rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1])
    middle = (rows[:, :2] + rows[:, 2:4]) / 2
    good = (rows[:, 4] >= threshold) & (sides >= min_face)
    good &= (middle > 0).all(axis=1) & (middle < (width, height)).all(axis=1)
    return make_faces(photo, rows[good], place)


def detect_and_select(photo: PhotoArray, options: DetectOptions, device: torch.device) -> list[Face]:
    """Find the faces of a photo and choose among them, as the options say.

    Raises:
        OptionError, DetectorError, ImageError: as `detect` and `select`.
    """
    found = detect(
        photo,
        options.detector,
        detector_dir=options.detector_dir,
        device=device,
        min_face=options.min_face,
        threshold=options.threshold,
        effort=options.effort,
    )
    return select(
        found,
        photo.shape,
        options.faces,
        min_face=options.min_face,
        max_face=options.max_face,
        max_faces=options.max_faces,
        order=options.order,
    )


def find_again(
    photo: Pixels | PhotoArray,
    faces: Sequence[Face],
    detector: DetectorName = "auto",
    *,
    detector_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    threshold: float = 0.9,
) -> list[Face | None]:
    """Look for the faces of a neighbouring frame, each near its place there: far quicker than `detect`.

    Args:
        faces: as found in the frame before or after.
        threshold: least score, which may be lower than `detect`'s, since a face is expected.
    Returns:
        each face in this frame, or None where it is gone or went further than a third of its size.
    Raises:
        ImageError, DetectorError, OptionError: see `detect`.
    """
    photo = PhotoArray.of(photo)
    place = detection_device(device or photo.device)
    net = load_detector(detector, detector_dir, place)
    base = whole(photo, net.smallest * RELATIVE, place)
    rows = [np.array([*face.box, face.score, *face.points.ravel()]) for face in faces]
    looks = look_closer(photo, base, [(row, roll_of(row)) for row in rows], net, place, turns=1)
    found: list[Face | None] = []
    for (row,) in looks:
        again = [] if row is None or row[4] < threshold else make_faces(photo, row[None], place)
        found.append(again[0] if again else None)
    return found


def detection_device(device: torch.device | str) -> torch.device:
    """Where detectors run: elsewhere (MPS, DirectML) some operators are missing, and the CPU is quick."""
    place = torch.device(device)
    return place if place.type == "cuda" else torch.device("cpu")


def load_detector(name: DetectorName, detector_dir: str | Path | None, device: torch.device) -> Detector:
    """Load the detector called `name`, kept in memory for the next photo; see `detect` for the names.

    Raises:
        OptionError: if the name is unknown.
        DetectorError: if weights are missing or damaged.
    """
    chosen, reason = choose_detector(name, detector_dir)
    return _load(chosen, reason, str(detector_dir or ""), str(device))


def choose_detector(name: DetectorName, detector_dir: str | Path | None) -> tuple[str, str]:
    """Resolve `auto`.

    Returns:
        The name of the detector that `detect` runs, and why it is that one.
    Raises:
        OptionError: if the name is unknown.
    """
    check(DetectOptions, detector=name)
    if name != "auto":
        return name, "asked for"
    for key in retinaface.RELEASES:
        if path := retinaface.find_local(key, detector_dir):
            return key, f"its weights are {path}"
    folders = ", ".join(map(str, retinaface.weight_folders(detector_dir)))
    return "mtcnn", f"no RetinaFace weights in {folders}"


@lru_cache(maxsize=4)
def _load(name: str, reason: str, detector_dir: str, device: str) -> Detector:
    log.info("face detector: %s (%s)", name, reason)
    if name == "mtcnn":
        return Mtcnn.load(device)
    return retinaface.load(name, detector_dir or None, torch.device(device))


def make_faces(photo: PhotoArray, rows: np.ndarray, device: torch.device) -> list[Face]:
    """Turn rows into faces, largest first; those whose landmarks fit no face are left out."""
    order = np.argsort(-(rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1]), kind="stable")
    faces = []
    for row in rows[order].tolist():
        points = np.array(row[5:]).reshape(5, 2)
        if np.isfinite(points).all() and np.ptp(points, axis=0).min() > 0.5:
            faces.append(_face(row, points))
    values = measure(photo, faces, device)
    return [dataclasses.replace(face, sharpness=value) for face, value in zip(faces, values, strict=True)]


def _face(row: list[float], points: np.ndarray) -> Face:
    x0, y0, x1, y1, score = row[:5]
    left, right, nose, mouth_left, mouth_right = ((float(x), float(y)) for x, y in points)
    affine = affine_rows(fit_similarity(points))
    return Face((x0, y0, x1, y1), (left, right, nose, mouth_left, mouth_right), score, affine)
