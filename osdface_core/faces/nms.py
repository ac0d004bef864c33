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
    if len(rows) < 2:
        return rows
    same = same_face(rows)
    kept: list[int] = []
    for number in range(len(rows)):
        if not same[number, kept].any():
            kept.append(number)
    return rows[kept]


def same_face(rows: np.ndarray) -> np.ndarray:
    """Compare boxes in pairs, (n, n) bool: over 40 % of their union shared, or landmarks in one place.

    Real neighbours in a crowd overlap too, but by less, and their landmarks lie apart.
    """
    low = np.maximum(rows[:, None, :2], rows[None, :, :2])
    high = np.minimum(rows[:, None, 2:4], rows[None, :, 2:4])
    inner = np.prod(np.clip(high - low, 0, None), axis=-1)
    area = np.prod(np.clip(rows[:, 2:4] - rows[:, :2], 0, None), axis=-1)
    union = area[:, None] + area[None, :] - inner
    side = np.sqrt(np.maximum(area, 1e-9))
    centre = rows[:, 5:].reshape(-1, 5, 2).mean(axis=1)
    distance = np.linalg.norm(centre[:, None] - centre[None, :], axis=-1)
    small, big = np.minimum(side[:, None], side[None, :]), np.maximum(side[:, None], side[None, :])
    return (inner > 0.4 * np.maximum(union, 1e-9)) | ((distance < 0.3 * small) & (big < 2.5 * small))


def drop_shadowed(rows: np.ndarray, sure: float) -> np.ndarray:
    """Drop doubtful rows that lie to a quarter inside a sure one: hair or a collar beside a face."""
    low = np.maximum(rows[:, None, :2], rows[None, :, :2])
    high = np.minimum(rows[:, None, 2:4], rows[None, :, 2:4])
    inner = np.prod(np.clip(high - low, 0, None), axis=-1)
    area = np.prod(np.clip(rows[:, 2:4] - rows[:, :2], 1e-3, None), axis=-1)
    good = rows[:, 4] >= sure
    shadowed = (inner > 0.25 * area[:, None]) & good[None, :] & ~good[:, None]
    return rows[~shadowed.any(axis=1)]
