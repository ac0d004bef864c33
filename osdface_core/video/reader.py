"""Read a video file or an image sequence frame by frame; damaged parts are counted, not fatal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import VideoError
from .formats import NUMBER, is_sequence, load_av
from .pixels import to_pixels

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


@dataclass
class Frame:
    """One frame as it came.

    Attributes:
        number: its place, from 0.
        picture: with its time stamp, strictly later than the one before.
        turns: quarter turns counter-clockwise that put it upright.
        broken: the decoder found it damaged.
    """

    number: int
    picture: VideoFrame
    turns: int
    broken: bool

    @property
    def time(self) -> float:
        """When it is shown [s]."""
        return float((self.picture.pts or 0) * (self.picture.time_base or 0))

    def pixels(self) -> np.ndarray:
        """Convert to upright RGB (H, W, 3), uint8 or uint16; anew at each call."""
        return to_pixels(self.picture, self.turns)


class VideoReader:
    """A video's stream of frames and what is known of it beforehand.

    Attributes:
        container, stream: PyAV's, for what else is in the file.
        first: the first frame.
        broken: packets that could not be decoded; what they held is missing.
    Raises:
        VideoError: no such file, no video in it, or numbers of a sequence are missing; one line.
    """

    def __init__(self, source: str | Path, fps: float = 25.0) -> None:
        self.path = Path(source)
        self.fps = fps
        self.container = self.open()
        self.stream = self._video()
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.flags |= load_av().codec.context.Flags.output_corrupt
        self.broken = 0
        self._rest = self._read()
        first = next(self._rest, None)
        if first is None:
            raise VideoError(f"{self.path}: no frame of it can be decoded; it may be damaged")
        self.first = first

    def open(self) -> InputContainer:
        """Open the file once more, for its other streams."""
        av = load_av()
        path, options = self.path, {}
        if sequence := is_sequence(path):
            options = {"framerate": str(self.fps), "start_number": str(first_number(path))}
        elif not path.is_file():
            raise VideoError(f"{path}: no such file")
        try:
            return av.open(str(path), format="image2" if sequence else None, options=options)
        except (av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VideoError(f"{path} cannot be read as a video: {reason}") from error

    def _video(self) -> VideoStream:
        cover = load_av().stream.Disposition.attached_pic
        for stream in self.container.streams.video:
            if not stream.disposition & cover:
                return stream
        kinds = ", ".join(sorted({stream.type for stream in self.container.streams})) or "nothing"
        raise VideoError(f"{self.path} has no video in it, only {kinds}; give a file with moving pictures")

    @property
    def rate(self) -> Fraction:
        """Frames per second on average; 25 where nothing says it."""
        return self.stream.average_rate or self.stream.guessed_rate or Fraction(25)

    @property
    def total(self) -> int:
        """About how many frames there are; 0: not known."""
        if self.stream.frames:
            return self.stream.frames
        if self.stream.duration and self.stream.time_base:
            return round(self.stream.duration * self.stream.time_base * self.rate)
        return round(self.container.duration / 1e6 * self.rate) if self.container.duration else 0

    def __iter__(self) -> Iterator[Frame]:
        """Yield all frames once, in the order in which they are shown."""
        yield self.first
        yield from self._rest

    def _read(self) -> Iterator[Frame]:
        last: int | None = None
        for number, picture in enumerate(self._decoded()):
            step = max(1, round(1 / self.rate / (picture.time_base or 1)))
            pts = picture.pts if picture.pts is not None else picture.dts
            if pts is None:
                pts = 0 if last is None else last + step
            picture.pts = pts if last is None else max(pts, last + 1)
            last = picture.pts
            yield Frame(number, picture, round(picture.rotation / 90) % 4, picture.is_corrupt)

    def _decoded(self) -> Iterator[VideoFrame]:
        error = load_av().error.FFmpegError
        packets = self.container.demux(self.stream)
        packet: Packet[VideoStream] | None
        while True:
            try:
                packet = next(packets, None)
            except error:  # a file cut short: what the decoder still holds comes out
                self.broken += 1
                packet = None
            try:
                yield from self.stream.decode(packet)
            except EOFError:
                return
            except error:
                self.broken += 1
            if packet is None:
                return


def first_number(pattern: Path) -> int:
    """Find the lowest number of an image sequence.

    Raises:
        VideoError: no picture fits the pattern, or numbers are missing in between.
    """
    match = NUMBER.search(pattern.name)
    assert match is not None
    head, tail = pattern.name[: match.start()], pattern.name[match.end() :]
    names = set(os.listdir(pattern.parent)) if pattern.parent.is_dir() else set[str]()  # noqa: PTH208
    middles = [n[len(head) : len(n) - len(tail)] for n in names if n.startswith(head) and n.endswith(tail)]
    numbers = sorted(int(middle) for middle in middles if middle.isascii() and middle.isdigit())
    numbers = [number for number in numbers if pattern.name % number in names]
    if not numbers:
        raise VideoError(f"{pattern}: no picture has such a name; the numbers start at, for instance, 1")
    missing = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
    if missing:
        raise VideoError(f"{pattern.parent / (pattern.name % missing[0])} is missing in the sequence; add it")
    return numbers[0]


def display_matrix(frame: VideoFrame) -> list[int] | None:
    """Return the nine numbers by which players turn or mirror the picture; None where there are none."""
    every: Any = frame.side_data
    for side in every:
        if side.type.name == "DISPLAYMATRIX":
            return np.frombuffer(side, np.int32).tolist()
    return None
