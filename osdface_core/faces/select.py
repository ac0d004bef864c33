"""Choose among detected faces: which ones, how large, how many, in what order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..errors import ImageError
from .face import Face

ORDERS: dict[str, Callable[[Face], tuple[float, ...]]] = {
    "area": lambda face: (-face.width * face.height,),
    "left_to_right": lambda face: (face.center[0], face.center[1]),
    "top_to_bottom": lambda face: (face.center[1], face.center[0]),
    "score": lambda face: (-face.score,),
}
"""Sort keys; ties keep the order they came in."""
ALIASES = {
    "size": "area",
    "left-right": "left_to_right",
    "top-bottom": "top_to_bottom",
    "confidence": "score",
}


def select(
    faces: Sequence[Face],
    shape: tuple[int, ...],
    which: str = "all",
    *,
    min_size: float = 0,
    max_size: float | None = None,
    max_count: int | None = None,
    order: str = "area",
) -> list[Face]:
    """Filter by size, sort, pick, and cut to a number, in this order.

    Args:
        faces: as found by `detect`.
        shape: height and width of the photo [px], for "center".
        which: "all"; "largest"; "center" (nearest to the photo's middle); or numbers such as "0,2" or "1-3",
            counted from 0 in the sorted list.
        min_size, max_size: bounds of the longer side of the box [px], ends included; None or 0: no upper one.
        max_count: keep the first so many; None: all.
        order: "area" (largest first; also "size"), "left_to_right", "top_to_bottom" or "score".
    Returns:
        The chosen faces; an empty list where none fits. Numbers keep the order they were written in.
    Raises:
        ImageError: if `which` or `order` is not understood, or a number is not there although faces are.
    """
    key = ORDERS.get(ALIASES.get(order, order))
    if key is None:
        raise ImageError(f"order {order!r} is unknown: choose one of {', '.join(ORDERS)}")
    wanted = parse_which(which)
    upper = max_size or float("inf")
    fitting = sorted((face for face in faces if min_size <= face.size <= upper), key=key)
    chosen = _pick(fitting, shape, which.strip().lower(), wanted)
    return chosen if max_count is None else chosen[: max(max_count, 0)]


def parse_which(which: str) -> list[int] | None:
    """Numbers in a selection string, or None for a word.

    Raises:
        ImageError: if it is neither.
    """
    if which.strip().lower() in ("all", "largest", "center"):
        return None
    numbers: list[int] = []
    for part in filter(None, re.split(r"[,;\s]+", which.strip())):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            numbers = []
            break
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not numbers:
        raise ImageError(
            f"faces {which!r} is not understood: expected all, largest, center or numbers such as 0,2 or 1-3"
        )
    return list(dict.fromkeys(numbers))


def _pick(faces: list[Face], shape: tuple[int, ...], word: str, wanted: list[int] | None) -> list[Face]:
    if not faces or word == "all":
        return faces
    if wanted is None:
        height, width = shape[:2]
        middle = ((width - 1) / 2, (height - 1) / 2)
        return [min(faces, key=ORDERS["area"] if word == "largest" else lambda face: _distance(face, middle))]
    missing = [number for number in wanted if number >= len(faces)]
    if missing:
        have = "only face 0 is" if len(faces) == 1 else f"only faces 0 to {len(faces) - 1} are"
        raise ImageError(f"face {missing[0]} is not there: {have}; choose others, or lower the minimum size")
    return [faces[number] for number in wanted]


def _distance(face: Face, point: tuple[float, float]) -> float:
    return (face.center[0] - point[0]) ** 2 + (face.center[1] - point[1]) ** 2
