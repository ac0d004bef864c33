"""Find the faces of a photo: pick the detector, work on a copy of sensible size, try harder where needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DetectorError
from .align import affine_rows, align, fit_similarity, sharpness
from .face import Face
from .mtcnn import Mtcnn
from .regions import Photo, photo_device, photo_shape, read_region

WORK_SIDE = 1280


def detect(
    photo: Photo,
    detector: str = "auto",
    *,
    detector_dir: str | None = None,
    device: torch.device | str | None = None,
    min_face: float = 0,
) -> list[Face]:
    """First version: MTCNN on one copy."""
    height, width = photo_shape(photo)
    device = photo_device(photo, device)
    net = Mtcnn.from_wheel(device)
    image = read_region(photo, 0, height, 0, width, device)
    scale = min(1.0, WORK_SIDE / max(height, width))
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    rows = net(image[None])[0]
    sx, sy = width / image.shape[-1], height / image.shape[-2]
    rows[:, [0, 2, 5, 7, 9, 11, 13]] = (rows[:, [0, 2, 5, 7, 9, 11, 13]] + 0.5) * sx - 0.5
    rows[:, [1, 3, 6, 8, 10, 12, 14]] = (rows[:, [1, 3, 6, 8, 10, 12, 14]] + 0.5) * sy - 0.5
    faces = []
    for row in rows.tolist():
        points = np.array(row[5:]).reshape(5, 2)
        affine = affine_rows(fit_similarity(points))
        faces.append(Face(tuple(row[:4]), tuple(map(tuple, points.tolist())), row[4], affine))
    return faces
