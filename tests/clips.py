"""Small videos for tests: a photo of two people panned over, with sound, subtitles and chapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (240, 200)
"""Width and height [px]."""
TICK = Fraction(1, 90000)


def pan(photo: np.ndarray, count: int, step: float = 2.0, start: int = 20) -> Iterator[np.ndarray]:
    """A window of SIZE that moves right by `step` px a frame over a photo of (300, 600)."""
    for number in range(count):
        left = round(start + step * number)
        yield np.ascontiguousarray(photo[40 : 40 + SIZE[1], left : left + SIZE[0]])


def flat(count: int, value: int = 90) -> Iterator[np.ndarray]:
    """Frames without a face, each a little different."""
    for number in range(count):
        frame = np.full((SIZE[1], SIZE[0], 3), value, np.uint8)
        frame[:, : 10 + number] += 40
        yield frame


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Iterable[float] | None = None,
    sound: str | None = "aac",
    subtitles: str | None = None,
    rotation: int = 0,
    matrix: int = 1,
) -> Path:
    """Encode (H, W, 3) uint8 frames; at 25 frames per second where `times` [s] says nothing."""
    import av

    out: Any = av.open(str(path), "w")
    frames = iter(frames)
    first = next(frames)
    options = {"libx265": {"x265-params": "log-level=error"}, "libvpx-vp9": {"cpu-used": "8", "b": "0"}}
    video: Any = out.add_stream(codec, rate=25, options=options.get(codec, {}))
    video.height, video.width = first.shape[:2]
    video.pix_fmt, video.codec_context.time_base = pixels, TICK
    context = video.codec_context
    context.colorspace = context.color_primaries = context.color_trc = matrix
    context.color_range = 1
    if rotation:
        video.set_display_rotation(rotation)
    audio: Any = out.add_stream(sound, rate=48000) if sound else None
    text: Any = out.add_mux_stream(subtitles) if subtitles else None
    chapter = {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
    out.set_chapters([chapter])
    out.metadata["title"] = "a clip"
    moments = iter(times or (number / 25 for number in range(10**6)))
    last = 0.0
    for pixels_now in (first, *frames):
        picture = av.VideoFrame.from_ndarray(pixels_now, "rgb24").reformat(
            format=pixels, dst_colorspace=matrix
        )
        last = next(moments)
        picture.pts, picture.time_base = round(last / TICK), TICK
        out.mux(video.encode(picture))
    out.mux(video.encode())
    if audio:
        _add_sound(out, audio, last)
    for number in range(2 if text else 0):
        packet = av.Packet(b"\x00\x05hello" if subtitles == "mov_text" else b"hello")
        packet.pts = packet.dts = number * 300
        packet.duration, packet.time_base, packet.stream = 200, Fraction(1, 1000), text
        out.mux(packet)
    out.close()
    return path


def _add_sound(out: Any, audio: Any, seconds: float) -> None:
    import av

    wave = (0.1 * np.sin(np.arange(int(48000 * seconds)) * 0.06)).astype(np.float32)
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
        frame.sample_rate, frame.pts = 48000, start
        out.mux(audio.encode(frame))
    out.mux(audio.encode())


def decoded(path: Path) -> list[Any]:
    """All frames of a video, as PyAV has them."""
    import av

    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times_of(path: Path) -> list[float]:
    """When the frames are shown [s]."""
    return [float(frame.time) for frame in decoded(path)]


def packets_of(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """The packets of the first stream of a kind, with their times [s]."""
    import av

    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        found = [packet for packet in container.demux(stream) if packet.size]
        return [(round(float(packet.pts * packet.time_base), 3), bytes(packet)) for packet in found]
