"""Faces of a stream of frames: found, looked for again near their place, followed, steadied over time.

What becomes of a frame depends on the frames around it alone (`WARM_UP` before, `AHEAD` after), so that a run
that goes on in the middle gives what an unbroken one gives, and memory does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..faces.detect import detect, find_again
from ..faces.face import Face
from ..faces.select import select
from ..faces.track import Follower, is_cut, steady
from ..options import DetectOptions
from .pixels import thumbnail
from .reader import Frame

EVERY = 8
"""The whole frame is searched every so many frames; between them the places of the last frame are."""
AHEAD = 16
"""Frames on either side that steady a face."""
WARM_UP = 7 * AHEAD
"""Frames to start ahead of the first one that is wanted: in them, what `ChangeSteadier` remembers fades."""
LENIENCE = 0.2
"""By how much the score of a followed face may fall below the threshold, so that it does not flicker."""


@dataclass
class Shot:
    """A frame with its faces.

    Attributes:
        found: as detected in this frame.
        cut: whether a new scene starts here.
        faces: chosen ones, steadied, `track` set.
    """

    frame: Frame
    found: list[Face] = field(default_factory=list)
    cut: bool = False
    faces: list[Face] = field(default_factory=list)


class FaceFinder:
    """Finds the faces of each frame, with the last one as a hint.

    Args:
        options: how to look; `faces` is a word or numbers.
        device: where to compute.
    """

    def __init__(self, options: DetectOptions, device: torch.device) -> None:
        self.options, self.device = options, device

    def shots(self, frames: Iterable[Frame]) -> Iterator[Shot]:
        """Detect in frames that start at a multiple of `EVERY`; yields lag behind by up to twice that."""
        before: list[Shot] = []
        thumb: Tensor | None = None
        for _, group in groupby(frames, lambda frame: frame.number // EVERY):
            chunk: list[Shot] = []
            for frame in group:
                last, thumb = thumb, torch.from_numpy(thumbnail(frame.picture)).permute(2, 0, 1) / 255.0
                shot = Shot(frame, cut=last is not None and is_cut(last, thumb))
                self._find(shot, chunk, before)
                chunk.append(shot)
            yield from before
            before = chunk
        yield from before

    def _find(self, shot: Shot, chunk: list[Shot], before: list[Shot]) -> None:
        """Look near the last places; search all of the frame if it is time, or if a face went missing."""
        if shot.frame.broken:
            return
        pixels = shot.frame.pixels()
        last = chunk[-1].found if chunk and not shot.cut else None
        if last is not None:
            again = self._again(pixels, last)
            if None not in again:
                shot.found = [face for face in again if face is not None]
                return
        shot.found = self._search(pixels)
        earlier = before[1:] + chunk
        for face in shot.found if earlier and not shot.cut else ():
            self._trace_back(face, earlier)

    def _trace_back(self, face: Face, shots: list[Shot]) -> None:
        """Add a face that was noticed late to the frames before, as far as it can be seen in them."""
        for shot in reversed(shots):
            if shot.frame.broken or any(_same(face, other) for other in shot.found):
                return
            (there,) = self._again(shot.frame.pixels(), [face])
            if there is None or any(_same(there, other) for other in shot.found):
                return
            shot.found.append(there)
            face = there
            if shot.cut:
                return

    def _search(self, pixels: np.ndarray) -> list[Face]:
        options = self.options
        return detect(
            pixels,
            options.detector,
            detector_dir=options.detector_dir,
            device=self.device,
            min_face=options.min_face,
            threshold=options.threshold,
            effort=options.effort,
        )

    def _again(self, pixels: np.ndarray, faces: list[Face]) -> list[Face | None]:
        options = self.options
        return find_again(
            pixels,
            faces,
            options.detector,
            detector_dir=options.detector_dir,
            device=self.device,
            threshold=max(0.0, options.threshold - LENIENCE),
        )


def _same(a: Face, b: Face) -> bool:
    return float(np.hypot(*(np.subtract(a.center, b.center)))) < 0.5 * max(a.size, b.size)


def steadied(shots: Iterable[Shot], options: DetectOptions) -> Iterator[Shot]:
    """Link the faces of shots into tracks, steady and choose them; lags by `AHEAD` to `AHEAD + EVERY`."""
    follower = Follower()
    times: dict[int, float] = {}
    waiting: list[Shot] = []
    for shot in shots:
        times[shot.frame.number] = shot.frame.time
        follower.step(shot.frame.number, shot.found, shot.cut)
        waiting.append(shot)
        if len(waiting) == EVERY + AHEAD:
            yield from _settle(waiting[:EVERY], follower, times, options)
            del waiting[:EVERY]
            oldest = waiting[0].frame.number - AHEAD
            follower.forget(oldest)
            times = {number: time for number, time in times.items() if number >= oldest - AHEAD}
    for start in range(0, len(waiting), EVERY):
        yield from _settle(waiting[start : start + EVERY], follower, times, options)


def _settle(
    shots: list[Shot], follower: Follower, times: dict[int, float], options: DetectOptions
) -> list[Shot]:
    """Fill in the faces of some neighbouring shots from the tracks around them."""
    start, end = shots[0].frame.number, shots[-1].frame.number + 1
    for track in follower.tracks:
        # A track's end in this window is always the same one, whatever came before it was forgotten.
        part = track.between(start - AHEAD, start + EVERY + AHEAD)
        if part.frames and part.frames[0] < end and part.frames[-1] >= start:
            for number, _, face in steady(part, times):
                if start <= number < end:
                    shots[number - start].faces.append(face)
    for shot in shots:
        shot.faces = _chosen(shot, options)
    return shots


def _chosen(shot: Shot, options: DetectOptions) -> list[Face]:
    """Choose as in a photo."""
    if shot.frame.broken:
        return []
    height, width = _upright(shot.frame)
    return select(
        shot.faces,
        (height, width),
        options.faces,
        min_face=options.min_face,
        max_face=options.max_face,
        max_faces=options.max_faces,
        order=options.order,
    )


def _upright(frame: Frame) -> tuple[int, int]:
    height, width = frame.picture.height, frame.picture.width
    return (height, width) if frame.turns % 2 == 0 else (width, height)
