"""Write a video: frames to encoded segments, and these with everything else of the input to the result."""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, VideoError
from ..files import writing
from .formats import Encoding, container_of, is_sequence, load_av
from .journal import Journal
from .reader import VideoReader, display_matrix, first_number

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

OWN_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder")
"""Metadata that speaks of the input's container."""


class VideoWriter:
    """Encodes frames into a journal beside the target, of which it makes the result.

    Attributes:
        journal: what is encoded so far, by an earlier run of the same job too.
        notes: streams of the input that the result's container does not hold, a line each.
    Raises:
        ConfigError: the container cannot hold the input's sound.
    """

    def __init__(
        self,
        reader: VideoReader,
        target: Path,
        encoding: Encoding,
        size: tuple[int, int],
        job: dict[str, Any],
    ) -> None:
        self.reader, self.target, self.encoding, self.size = reader, target, encoding, size
        self.format = container_of(target)
        self.notes: tuple[str, ...] = ()
        if self.format != "image2":
            with load_av().open(io.BytesIO(), "w", format=self.format) as probe:
                self.notes = tuple(self._copied(probe, reader.container)[1])
        self._encoder: VideoCodecContext | None = None
        self.journal = Journal(target.with_name(target.name + ".part"), job)

    def write(self, frame: VideoFrame) -> None:
        """Encode one frame, in the pixel format of `encoding`."""
        if self._encoder is None:
            self._encoder = encoder = load_av().CodecContext.create(self.encoding.encoder, "w")
            self._configure(encoder)
            encoder.options = dict(self.encoding.settings)
            encoder.flags |= load_av().codec.context.Flags.global_header
        self._encode(frame)

    def end_segment(self, state: dict[str, Any]) -> None:
        """Let the encoder end; what was written so far survives. See `Journal.end_segment`."""
        if self._encoder is not None:
            self._encode(None)
            self._encoder = None
            self.journal.end_segment(state)

    def _encode(self, frame: VideoFrame | None) -> None:
        assert self._encoder is not None
        try:
            for packet in self._encoder.encode(frame):
                self.journal.add(packet)
        except load_av().error.FFmpegError as error:
            raise VideoError(f"{self.encoding.encoder} cannot encode this video: {error}") from error

    def finish(self, until: float | None = None) -> None:
        """Write the result, whole or not at all: the frames of the journal and the input's other streams.

        Args:
            until: where the other streams end, for a video that is not done [s]; None: where they end.
        Raises:
            VideoError: it cannot be written.
        """
        av = load_av()
        if is_sequence(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            first = first_number(self.reader.path) if is_sequence(self.reader.path) else 1
            self._mux(str(self.target), None, {"start_number": str(first), "atomic_writing": "1"})
            return
        try:
            with writing(self.target, VideoError) as temporary:
                self._mux(str(temporary), until, {"movflags": "faststart"} if "mp4" in self.format else {})
        except av.error.FFmpegError as error:
            raise VideoError(f"cannot write {self.target}: {error}; nothing was replaced") from error

    def _mux(self, path: str, until: float | None, options: dict[str, str]) -> None:
        av = load_av()
        with ExitStack() as stack:
            out = stack.enter_context(av.open(path, "w", format=self.format, options=options))
            source = stack.enter_context(self.reader.open())
            video = self._video(out)
            pairs = {} if self.format == "image2" else self._copied(out, source)[0]
            if self.format != "image2":
                out.metadata.update({k: v for k, v in source.metadata.items() if k not in OWN_TAGS})
                out.set_chapters(source.chapters())
            out.start_encoding()
            base = self.reader.first.picture.time_base or Fraction(1, 1000)
            for packet, place in heapq.merge(
                ((packet, video) for packet in self.journal.packets(base)),
                _others(source, pairs, until),
                key=_decoded_at,
            ):
                packet.stream = place
                out.mux_one(packet)

    def _video(self, out: OutputContainer) -> VideoStream:
        """Add the video's stream: an encoder like the segments', which only says how they are coded."""
        stream: Any = out.add_stream(
            self.encoding.encoder, self.reader.rate, options=dict(self.encoding.settings)
        )
        self._configure(stream.codec_context)
        stream.time_base = self.reader.first.picture.time_base or Fraction(1, 1000)
        matrix = display_matrix(self.reader.first.picture)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if self.encoding.encoder == "libx265" and self.format in ("mp4", "mov"):
            stream.codec_context.codec_tag = "hvc1"  # Apple's players know no other
        if self.format != "image2":
            stream.metadata.update(self.reader.stream.metadata)
        return stream

    def _configure(self, encoder: VideoCodecContext) -> None:
        """Set what the encoder has to know of the frames: the same for every segment."""
        like, source = self.reader.first.picture, self.reader.stream.codec_context
        encoder.width, encoder.height = self.size
        encoder.pix_fmt = self.encoding.pixels
        encoder.time_base, encoder.framerate = like.time_base or Fraction(1, 1000), self.reader.rate
        if ratio := self.reader.stream.sample_aspect_ratio:
            encoder.sample_aspect_ratio = ratio
        encoder.colorspace, encoder.color_range = like.colorspace, like.color_range
        encoder.color_primaries, encoder.color_trc = like.color_primaries, like.color_trc
        encoder.thread_count = source.thread_count

    def _copied(self, out: OutputContainer, source: Any) -> tuple[dict[int, Stream], list[str]]:
        """Add all streams but the video; return them by their numbers in the input, and what was left out."""
        pairs: dict[int, Stream] = {}
        notes: list[str] = []
        for stream in source.streams:
            titles = stream.type == "data" and stream.name == "bin_data" and source.chapters()
            if stream.index == self.reader.stream.index or titles:
                continue  # .mp4 shows the titles of its chapters as a stream; they are written as chapters
            codec = getattr(stream.codec_context, "name", None) or stream.type
            try:
                if stream.type == "data":
                    raise ValueError
                made = out.add_stream_from_template(stream, opaque=True)
            except (ValueError, load_av().error.FFmpegError):
                line = f"{stream.type} stream {stream.index} ({codec}) does not fit into {self.target.suffix}"
                if stream.type == "audio":
                    raise ConfigError(f"{line}: give -o {self.target.with_suffix('.mkv')}") from None
                notes.append(f"left out: {line}")
                continue
            made.metadata.update(stream.metadata)
            made.disposition = stream.disposition
            pairs[stream.index] = made
        return pairs, notes


def _decoded_at(one: tuple[Packet[Any], Stream]) -> float:
    return float((one[0].dts or 0) * (one[0].time_base or 0))


def _others(
    source: Any, pairs: dict[int, Stream], until: float | None
) -> Iterator[tuple[Packet[Any], Stream]]:
    """Yield the packets of the copied streams, each with its place in the result."""
    wanted = [stream for stream in source.streams if stream.index in pairs and stream.type != "attachment"]
    if not wanted:
        return
    try:
        for packet in source.demux(wanted):
            late = until is not None and packet.pts is not None and packet.pts * packet.time_base > until
            if packet.dts is not None and not late:
                yield packet, pairs[packet.stream.index]
    except load_av().error.FFmpegError:  # the end of a file that was cut short
        return
