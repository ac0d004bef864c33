"""One detected face: where it is in the photo and how the photo maps onto its aligned crop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

Point = tuple[float, float]
MatrixRow = tuple[float, float, float]

CROP_SIZE = 512
"""Side of the aligned crop [px] that `Face.affine` maps to."""

FFHQ_TEMPLATE: tuple[Point, ...] = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
"""Left eye, right eye, nose tip, left and right mouth corner in a 512 crop [px]; left as seen in the image.

Source: the five-point layout that FFHQ-aligned restorers are trained on.
"""


@dataclass(frozen=True)
class Face:
    """A face of one photo. Coordinates are photo pixels; the centre of the top-left pixel is (0, 0).

    Attributes:
        box: x0, y0, x1, y1 [px]; may reach over the photo's border.
        landmarks: left eye, right eye, nose tip, left and right mouth corner, as (x, y) [px].
        score: the detector's confidence, 0 to 1.
        affine: 2x3, maps photo (x, y, 1) to the 512 crop (x, y) [px]; a similarity.
        sharpness: detail in the aligned crop, see `sharpness.sharpness`; about 0 (no detail) to 1 (crisp).
        identity_before_after: cosine similarity of the face before and after restoration, where asked for.
        track: number of the face through the frames of a clip, where tracking ran.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[Point, Point, Point, Point, Point]
    score: float
    affine: tuple[MatrixRow, MatrixRow]
    sharpness: float = 0.0
    identity_before_after: tuple[float, float] | None = None
    track: int | None = None

    @property
    def points(self) -> np.ndarray:
        """Landmarks as a (5, 2) float64 array [px]."""
        return np.asarray(self.landmarks, dtype=np.float64)

    @property
    def matrix(self) -> np.ndarray:
        """`affine` as a (2, 3) float64 array."""
        return np.asarray(self.affine, dtype=np.float64)

    @property
    def width(self) -> float:
        """Width of the box [px]."""
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        """Height of the box [px]."""
        return self.box[3] - self.box[1]

    @property
    def size(self) -> float:
        """Longer side of the box [px]: what minimum and maximum sizes are compared with."""
        return max(self.width, self.height)

    @property
    def center(self) -> Point:
        """Middle of the box (x, y) [px]."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain tuples and numbers, ready for `json.dumps`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Face:
        """Build a face from `to_dict`'s result; keys that a newer version added are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: _freeze(value) for name, value in values.items() if name in known})

    def scaled(self, sx: float, sy: float | None = None) -> Face:
        """Return the same face in a photo resized by `sx` (and `sy`) [new px / old px].

        With unequal factors (sizes rounded to whole pixels) the affine stops being an exact similarity by
        that rounding, so that it still maps the resized photo onto the same crop.
        """
        sy = sx if sy is None else sy

        # Pixel centres sit at whole numbers, so edges (-0.5) are what scales linearly.
        def move(x: float, y: float) -> Point:
            return (x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5

        (a, b, c), (d, e, f) = self.affine
        ox, oy = 0.5 / sx - 0.5, 0.5 / sy - 0.5  # old coordinate of the new pixel 0
        affine = ((a / sx, b / sy, a * ox + b * oy + c), (d / sx, e / sy, d * ox + e * oy + f))
        box = (*move(*self.box[:2]), *move(*self.box[2:]))
        points = tuple(move(x, y) for x, y in self.landmarks)
        return dataclasses.replace(self, box=box, landmarks=points, affine=affine)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
