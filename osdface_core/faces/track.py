"""Follow faces through the frames of a clip and steady their landmarks, so that pasted faces don't tremble.

Source: Casiez, Roussel and Vogel, "1 Euro Filter" (CHI 2012): a low-pass whose cut-off rises with speed.
A clip is known as a whole here, so the filter runs forwards and backwards and the two results are averaged:
what one direction lags behind, the other runs ahead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .align import affine_rows, fit_similarity
from .face import Face

CUT_DIFFERENCE = 0.15
"""Mean change of a thumbnail's pixels (unit range) that means a new scene, if motion does not explain it."""
THUMB = 32
SETTLE = 16
"""Frames that a clip is continued by at both ends while it is filtered."""
REACH = 0.6
"""A face may move this far between frames, in units of its own size, and stay the same person's."""
GROWTH = 1.6
"""A face may grow or shrink by this factor between frames."""
MAX_GAP = 4
"""Frames for which a face may be missed and still be taken for the same one."""
STEP = 1 / 24
"""Time from frame to frame where nobody says it [s]."""
CUTOFF = 0.5
"""Cut-off of a face at rest [Hz]; lower is steadier."""
SPEED = 0.4
"""How much the cut-off rises with speed [Hz per (face sizes per second)]; higher follows faster."""
SPEED_CUTOFF = 1.0
"""Cut-off of the speed estimate itself [Hz]."""


@dataclass(eq=False)
class Track:
    """One person's face through frames: `faces[i]` was found in frame `frames[i]`."""

    number: int
    frames: list[int]
    faces: list[Face]

    def between(self, start: int, end: int) -> Track:
        """Return the part in frames `start` to `end`, the end excluded."""
        kept = [i for i, frame in enumerate(self.frames) if start <= frame < end]
        return Track(self.number, [self.frames[i] for i in kept], [self.faces[i] for i in kept])


def smooth(
    frames: Sequence[Sequence[Face]],
    pixels: Tensor | None = None,
    *,
    cuts: Sequence[bool] | None = None,
    times: Sequence[float] | None = None,
) -> list[list[Face]]:
    """Give every face a track number and steady landmarks, affine and box over time.

    Args:
        frames: faces per frame, as `detect` found them.
        pixels: (B, 3, H, W) unit range, for finding scene cuts; or pass `cuts`, or neither (no cut).
        cuts: per frame, whether it starts a new scene.
        times: of the frames [s]; None means 24 frames per second.
    Returns:
        Faces per frame in the same order, with `track` set. Where a face was missed for up to four frames, it
        is filled in between its neighbours in time (at the end of that frame's list), so that a restored face
        does not flash.
    """
    if cuts is None:
        cuts = [False] * len(frames) if pixels is None else scene_cuts(pixels)
    result: list[list[Face]] = [[] for _ in frames]
    places = {id(face): (i, j) for i, faces in enumerate(frames) for j, face in enumerate(faces)}
    slots: list[dict[int, Face]] = [{} for _ in frames]
    times = [STEP * number for number in range(len(frames))] if times is None else times
    for track in follow(frames, cuts):
        for frame, original, face in steady(track, times):
            where = places.get(id(original)) if original is not None else None
            slots[frame][where[1] if where else 10**6 + track.number] = face
    for number, slot in enumerate(slots):
        result[number] = [slot[key] for key in sorted(slot)]
    return result


def scene_cuts(pixels: Tensor) -> list[bool]:
    """Tell for each frame of (B, 3, H, W) whether it starts a new scene; the first never does.

    Two thumbnails are compared at the shift (up to a quarter of the picture) at which they agree best, so
    that a quick pan is no cut.
    """
    thumbs = [F.adaptive_avg_pool2d(frame.float(), THUMB) for frame in pixels]
    return [False] * min(1, len(thumbs)) + [is_cut(a, b) for a, b in pairwise(thumbs)]


def is_cut(a: Tensor, b: Tensor) -> bool:
    """Tell whether thumbnails (3, 32, 32) in [0, 1] of neighbouring frames show different scenes."""
    if float((a - b).abs().mean()) < CUT_DIFFERENCE:
        return False
    reach = THUMB // 4
    best = math.inf
    for dy in range(-reach, reach + 1, 2):
        for dx in range(-reach, reach + 1, 2):
            p = a[:, max(dy, 0) : THUMB + min(dy, 0), max(dx, 0) : THUMB + min(dx, 0)]
            q = b[:, max(-dy, 0) : THUMB + min(-dy, 0), max(-dx, 0) : THUMB + min(-dx, 0)]
            best = min(best, float((p - q).abs().mean()))
    return best >= 0.6 * CUT_DIFFERENCE


def follow(frames: Sequence[Sequence[Face]], cuts: Sequence[bool]) -> list[Track]:
    """Link faces of neighbouring frames into tracks, nearest pairs first; a cut ends all of them."""
    follower = Follower()
    for number, faces in enumerate(frames):
        follower.step(number, faces, cuts[number])
    return sorted(follower.tracks, key=lambda track: track.number)


class Follower:
    """Links faces into tracks as the frames come.

    Attributes:
        tracks: all that were not forgotten, ended ones too.
    """

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self._live: list[Track] = []
        self._count = 0

    def step(self, number: int, faces: Sequence[Face], cut: bool) -> None:
        """Take the faces of frame `number`; with `cut` none of them continues a track."""
        live = [] if cut else [t for t in self._live if number - t.frames[-1] <= MAX_GAP + 1]
        taken = _match(live, faces, number)
        for index, face in enumerate(faces):
            if index in taken:
                taken[index].frames.append(number)
                taken[index].faces.append(face)
            else:
                live.append(Track(self._count, [number], [face]))
                self.tracks.append(live[-1])
                self._count += 1
        self._live = live

    def forget(self, before: int) -> None:
        """Drop what was found before frame `before`, but of each track the last two faces, which predict."""
        for track in self.tracks:
            old = min(sum(frame < before for frame in track.frames), len(track.frames) - 2)
            del track.frames[: max(old, 0)], track.faces[: max(old, 0)]
        self.tracks = [t for t in self.tracks if t.frames[-1] >= before or t in self._live]


def _match(tracks: Sequence[Track], faces: Sequence[Face], number: int) -> dict[int, Track]:
    pairs = []
    for track in tracks:
        expected, size = _predict(track, number)
        for index, face in enumerate(faces):
            distance = float(np.linalg.norm(face.points.mean(axis=0) - expected)) / max(size, face.size, 1e-6)
            ratio = max(face.size, 1e-6) / max(size, 1e-6)
            if distance < REACH and 1 / GROWTH < ratio < GROWTH:
                pairs.append((distance, track.number, index, track))
    taken: dict[int, Track] = {}
    used: set[int] = set()
    for _, _, index, track in sorted(pairs, key=lambda pair: pair[:3]):
        if index not in taken and track.number not in used:
            taken[index] = track
            used.add(track.number)
    return taken


def _predict(track: Track, number: int) -> tuple[np.ndarray, float]:
    """Where the landmarks' centre should be now at constant speed, and the last size."""
    last = track.faces[-1].points.mean(axis=0)
    if len(track.faces) < 2:
        return last, track.faces[-1].size
    step = (last - track.faces[-2].points.mean(axis=0)) / (track.frames[-1] - track.frames[-2])
    return last + step * (number - track.frames[-1]), track.faces[-1].size


def steady(track: Track, times: Sequence[float] | Mapping[int, float]) -> list[tuple[int, Face | None, Face]]:
    """Filter one track.

    Args:
        times: of the frames, by their numbers [s].
    Returns:
        (frame, the detected face or None where it was missed, the steadied face), frame by frame.
    """
    span = list(range(track.frames[0], track.frames[-1] + 1))
    known = dict(zip(track.frames, track.faces, strict=True))
    values = np.array([_numbers(face) for face in track.faces])
    now = np.array([times[frame] for frame in span])
    then = now[np.array(track.frames) - span[0]]
    filled = np.stack([np.interp(now, then, column) for column in values.T], axis=1)
    sizes = np.exp(
        np.log(np.maximum(np.ptp(filled[:, 4:].reshape(-1, 5, 2), axis=1).max(axis=1), 1e-3)).mean()
    )
    steps = np.maximum(np.diff(now), 1e-4)
    usual = float(np.median(steps)) if len(steps) else STEP
    steps = np.concatenate((np.full(SETTLE, usual), steps, np.full(SETTLE, usual)))
    scaled = extended(filled / sizes, SETTLE)
    both = (one_euro(scaled, steps) + one_euro(scaled[::-1], steps[::-1])[::-1]) / 2 * sizes
    nearest = [track.faces[int(np.argmin(np.abs(np.array(track.frames) - frame)))] for frame in span]
    return [
        (frame, known.get(frame), _rebuild(near, row, track.number))
        for frame, near, row in zip(span, nearest, both[SETTLE:-SETTLE], strict=True)
    ]


def extended(signal: np.ndarray, count: int) -> np.ndarray:
    """Continue (frames, channels) by `count` frames at both ends, along the line that fits those next to it.

    A filter that starts with the clip lags behind a moving face there, and nothing runs ahead to balance it.
    """

    def before(rows: np.ndarray) -> np.ndarray:
        if len(rows) == 1:
            return np.repeat(rows, count, axis=0)
        line = np.polyfit(np.arange(len(rows)), rows, 1)
        return np.arange(-count, 0)[:, None] * line[0] + line[1]

    near = min(len(signal), SETTLE // 2)
    return np.concatenate((before(signal[:near]), signal, before(signal[: -near - 1 : -1])[::-1]))


def one_euro(signal: np.ndarray, steps: np.ndarray | None = None) -> np.ndarray:
    """Apply the causal 1-euro filter over (frames, channels); one cut-off per channel and frame.

    Source: Casiez et al. 2012, Algorithm 1: alpha = 1 / (1 + tau / dt), tau = 1 / (2 pi cut-off).

    Args:
        steps: (frames - 1,) time from each frame to the next [s]; None means 24 frames per second.
    """
    steps = np.full(len(signal) - 1, STEP) if steps is None else steps
    out = np.empty_like(signal)
    value, speed = signal[0].copy(), np.zeros_like(signal[0])
    out[0] = value
    for number, step in enumerate(steps.tolist(), start=1):
        raw = (signal[number] - signal[number - 1]) / step
        speed += _alpha(SPEED_CUTOFF, step) * (raw - speed)
        cutoff = CUTOFF + SPEED * np.abs(speed)
        value = value + _alpha(cutoff, step) * (signal[number] - value)
        out[number] = value
    return out


def _alpha(cutoff: np.ndarray | float, step: float) -> np.ndarray | float:
    return 1 / (1 + 1 / (2 * math.pi * cutoff * step))


def _numbers(face: Face) -> np.ndarray:
    return np.concatenate((face.box, face.points.ravel()))


def _rebuild(face: Face, row: np.ndarray, number: int) -> Face:
    x0, y0, x1, y1 = row[:4].tolist()
    left, right, nose, mouth_left, mouth_right = ((float(x), float(y)) for x, y in row[4:].reshape(5, 2))
    points = (left, right, nose, mouth_left, mouth_right)
    affine = affine_rows(fit_similarity(np.array(points)))
    return dataclasses.replace(face, box=(x0, y0, x1, y1), landmarks=points, affine=affine, track=number)
