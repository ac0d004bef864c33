"""Choose among detected faces: which ones, how large, how many, in what order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..choices import Order
from ..options import DetectOptions, options_of, parse_faces
from .face import Face

KEYS: dict[Order, Callable[[Face], tuple[float, ...]]] = {
    "size": lambda face: (-face.width * face.height,),
    "left_to_right": lambda face: (face.center[0], face.center[1]),
    "top_to_bottom": lambda face: (face.center[1], face.center[0]),
    "score": lambda face: (-face.score,),
}
"""Sort keys; ties keep the order they came in."""


def select(
    faces: Sequence[Face],
    shape: tuple[int, ...],
    which: str = "all",
    *,
    min_face: float = 0,
    max_face: float | None = None,
    max_faces: int | None = None,
    order: Order = "size",
) -> list[Face]:
    """Filter by size, sort, pick, and cut to a number, in this order.

    Args:
        faces: as found by `detect`.
        shape: height and width of the photo [px], for "center".
        which: `faces` of `DetectOptions` in options.py; numbers count in the sorted list.
        min_face, max_face: bounds of the longer side of the box [px], ends included; None or 0: no upper one.
        max_faces, order: as options.py says.
    Returns:
        The chosen faces; an empty list where none fits. Numbers keep the order they were written in; those
        that are not there are left out.
    Raises:
        OptionError: if `which` or `order` is not understood.
    """
    order = options_of(DetectOptions)["order"].check(order)
    wanted = parse_faces(which)
    upper = max_face or float("inf")
    fitting = sorted((face for face in faces if min_face <= face.size <= upper), key=KEYS[order])
    chosen = _pick(fitting, shape, which.strip().lower(), wanted)
    return chosen if max_faces is None else chosen[: max(max_faces, 0)]


def _pick(faces: list[Face], shape: tuple[int, ...], word: str, wanted: list[int] | None) -> list[Face]:
    if not faces or word == "all":
        return faces
    if wanted is None:
        x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2

        def off_centre(face: Face) -> float:
            return (face.center[0] - x) ** 2 + (face.center[1] - y) ** 2

        return [min(faces, key=KEYS["size"] if word == "largest" else off_centre)]
    return [faces[number] for number in wanted if number < len(faces)]
