"""A file beside the result that holds what is encoded so far, whole segments of it surviving any end."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VideoError
from .formats import load_av

if TYPE_CHECKING:
    from fractions import Fraction

    from av.packet import Packet

HEAD = struct.Struct("<qqqIB")
"""Of a record: pts, dts, duration, bytes that follow, kind."""
PACKET, KEY_PACKET, END = 0, 1, 2


class Journal:
    """Encoded packets, segment after segment; opening it drops what follows the last whole segment.

    The file is a line of JSON, the job, and records. A file of another job is begun anew.

    Attributes:
        state: what `end_segment` was last given; empty at the start.
    Raises:
        VideoError: the file cannot be written.
    """

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        self.path = path
        self.state: dict[str, Any] = {}
        line = json.dumps(job, sort_keys=True).encode() + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._file.seek(0)
            if self._file.readline() != line:
                self._file.truncate(0)
                self._file.write(line)
            self._start = end = len(line)
            for kind, content, end_of in self._records():
                if kind[4] == END:
                    self.state, end = json.loads(content), end_of
            self._file.truncate(end)
        except OSError as error:
            raise VideoError(f"cannot write {path}: {error}") from error

    def add(self, packet: Packet[Any]) -> None:
        """Append a packet. Raises VideoError, as when the disk is full."""
        data = bytes(packet)
        pts = packet.pts or 0
        dts = pts if packet.dts is None else packet.dts
        kind = KEY_PACKET if packet.is_keyframe else PACKET
        self._write(HEAD.pack(pts, dts, packet.duration or 0, len(data), kind) + data)

    def end_segment(self, state: dict[str, Any]) -> None:
        """Make all packets so far permanent, with what is needed to go on from here."""
        self.state = state
        data = json.dumps(state).encode()
        self._write(HEAD.pack(0, 0, 0, len(data), END) + data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def packets(self, time_base: Fraction) -> Iterator[Packet[Any]]:
        """Yield all packets, decoding times rising."""
        make, last = load_av().Packet, None
        for (pts, dts, duration, _, kind), content, _ in self._records():
            if kind == END:
                continue
            packet = make(content)
            # Segments are encoded apart: a first frame may be due before the last one of the segment before.
            packet.dts = last = dts if last is None else max(dts, last + 1)
            packet.pts, packet.duration, packet.time_base = max(pts, packet.dts), duration, time_base
            packet.is_keyframe = kind == KEY_PACKET
            yield packet

    def close(self) -> None:
        """Leave the file for a later run."""
        self._file.close()

    def delete(self) -> None:
        """Remove the file: the result is there."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _records(self) -> Iterator[tuple[tuple[int, int, int, int, int], bytes, int]]:
        """Yield head, content and end of each whole record, at a place of its own in the file."""
        place = self._start
        while True:
            self._file.seek(place)
            head = self._file.read(HEAD.size)
            if len(head) < HEAD.size:
                return
            numbers = HEAD.unpack(head)
            content = self._file.read(numbers[3])
            place += HEAD.size + numbers[3]
            if len(content) < numbers[3]:
                return
            yield numbers, content, place

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)  # opened for appending: always at the end
        except OSError as error:
            raise VideoError(f"cannot write {self.path}: {error}; free some space and run again") from error
