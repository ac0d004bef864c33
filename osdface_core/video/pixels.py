"""A decoded frame as an upright RGB array, and what was changed in it back into the frame's own samples.

Only the change travels back: where a face was not touched, the samples that the encoder gets are the input's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .formats import load_av

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

THUMB = 32


def to_pixels(frame: VideoFrame, turns: int) -> np.ndarray:
    """Convert a frame to (H, W, 3) RGB: uint8, or uint16 above 8 bits.

    Args:
        turns: quarter turns counter-clockwise that put it upright.
    """
    deep = max(part.bits for part in frame.format.components) > 8
    return np.rot90(_reformatted(frame, format="rgb48le" if deep else "rgb24").to_ndarray(), turns)


def thumbnail(frame: VideoFrame) -> np.ndarray:
    """Shrink a frame to (32, 32, 3) uint8, for telling scene cuts."""
    return _reformatted(frame, width=THUMB, height=THUMB, format="rgb24", interpolation="AREA").to_ndarray()


def converted(frame: VideoFrame, form: str) -> VideoFrame:
    """Return a frame in a pixel format, with the times and the colour description of the given one."""
    if frame.format.name == form:
        return frame
    return _described(_reformatted(frame, **_stored_as(frame, form)), frame)


def from_pixels(pixels: np.ndarray, like: VideoFrame, form: str, turns: int) -> VideoFrame:
    """Make a frame of a pixel format from upright RGB, with the times and colour description of `like`."""
    stored = np.ascontiguousarray(np.rot90(pixels, -turns))
    name = "rgb48le" if stored.dtype == np.uint16 else "rgb24"
    rgb = load_av().VideoFrame.from_ndarray(stored, name)
    return _described(_reformatted(rgb, **_stored_as(like, form)), like)


def with_change(
    frame: VideoFrame, before: np.ndarray, after: np.ndarray, form: str, turns: int
) -> VideoFrame:
    """Add the difference of two upright RGB pictures to a frame, in its own samples.

    Args:
        frame: as decoded; it stays as it is, since the decoder may still predict others from it.
        before: what `to_pixels` gave.
        after: the same with restored faces.
        form: pixel format of the result.
    """
    old, new = from_pixels(before, frame, form, turns), from_pixels(after, frame, form, turns)
    base = converted(frame, form)
    made = load_av().VideoFrame(base.width, base.height, form)
    bits = max(part.bits for part in made.format.components)
    kind = np.dtype(np.uint8) if bits <= 8 else np.dtype(">u2" if form.endswith("be") else "<u2")
    for plane, was, now, own in zip(made.planes, old.planes, new.planes, base.planes, strict=True):
        start, lost, gained = (_samples(one, kind) for one in (own, was, now))
        width = min(row.shape[1] for row in (start, lost, gained))
        change = gained[:, :width].astype(np.int32) - lost[:, :width]
        target = _samples(plane, kind)
        target[:, :width] = (start[:, :width] + change).clip(0, (1 << bits) - 1)
    return _described(made, frame)


def _samples(plane: object, kind: np.dtype[np.generic]) -> np.ndarray:
    """View a plane as (rows, samples with padding), writable where the plane is."""
    lines: int = plane.line_size // kind.itemsize  # type: ignore[attr-defined]
    flat = np.frombuffer(plane, kind)  # type: ignore[call-overload]
    height: int = plane.height  # type: ignore[attr-defined]
    return flat[: lines * height].reshape(height, lines)


def _reformatted(frame: VideoFrame, **wanted: Any) -> VideoFrame:
    """Convert or scale a frame. Its own `reformat` would keep a scaler and its threads for as long as it."""
    return load_av().video.reformatter.VideoReformatter().reformat(frame, threads=1, **wanted)


def _stored_as(like: VideoFrame, form: str) -> dict[str, Any]:
    return {"format": form, "dst_colorspace": like.colorspace, "dst_color_range": _range(like, form)}


def _range(frame: VideoFrame, form: str) -> int:
    """RGB and yuvj have full range whatever the input says; where it says nothing video has limited range."""
    full = form.startswith(("yuvj", "rgb", "gbr", "gray"))
    return 2 if full else frame.color_range or 1


def _described(made: VideoFrame, like: VideoFrame) -> VideoFrame:
    made.pts, made.time_base, made.duration = like.pts, like.time_base, like.duration
    made.colorspace, made.color_range = like.colorspace, like.color_range
    made.color_primaries, made.color_trc = like.color_primaries, like.color_trc
    return made
