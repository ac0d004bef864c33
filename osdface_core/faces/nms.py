"""Unite what several looks at a photo found, without counting a face twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTH = 15
"""Columns of a row: box 4, score 1, landmarks 10."""


def nms(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Keep the best row of each face, best first: non-maximum suppression by box and by landmarks.

    Args:
        parts: rows (n, 15) [photo px] of several looks.
    """
    rows = np.concatenate([np.zeros((0, WIDTH)), *parts])
    rows = rows[np.isfinite(rows).all(axis=1)]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    return rows[unlike_better(same_face(rows))]


def unlike_better(alike: np.ndarray) -> list[int]:
    """Which rows (best first) to keep, so that none is like a kept one before it; `alike` is (n, n) bool."""
    kept: list[int] = []
    for row in range(len(alike)):
        if not alike[row, kept].any():
            kept.append(row)
    return kept


def overlaps(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas (n, n) that pairs of boxes (n, 4) share, and the boxes' own (n,) [px^2]."""
    shared = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
        boxes[:, None, :2], boxes[None, :, :2]
    )
    own = boxes[:, 2:] - boxes[:, :2]
    return np.prod(shared.clip(0), axis=-1), np.prod(own.clip(0), axis=-1)


def same_face(rows: np.ndarray) -> np.ndarray:
    """(n, n) bool: boxes that share over 40 % of their union, or similar sizes with landmarks in one place.

    Real neighbours in a crowd overlap too, but by less, and their landmarks lie apart.
    """
    inner, area = overlaps(rows[:, :4])
    union = area[:, None] + area[None, :] - inner
    side = np.sqrt(np.maximum(area, 1e-9))
    centre = rows[:, 5:].reshape(-1, 5, 2).mean(axis=1)
    distance = np.linalg.norm(centre[:, None] - centre[None, :], axis=-1)
    small, big = np.minimum(side[:, None], side[None, :]), np.maximum(side[:, None], side[None, :])
    return (inner > 0.4 * np.maximum(union, 1e-9)) | ((distance < 0.3 * small) & (big < 2.5 * small))


def drop_shadowed(rows: np.ndarray, sure: float) -> np.ndarray:
    """Drop doubtful rows that lie to a quarter inside a sure one: hair or a collar beside a face."""
    inner, area = overlaps(rows[:, :4])
    good = rows[:, 4] >= sure
    shadowed = (inner > 0.25 * area[:, None].clip(1e-6)) & good[None, :] & ~good[:, None]
    return rows[~shadowed.any(axis=1)]
