"""What is a video, and which encoder writes the result: with the input's codec and depth where possible."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, OptionError, VideoError
from ..file_kinds import VIDEOS
from ..options import VideoOptions

if TYPE_CHECKING:
    from av.video.format import VideoFormat

WRITTEN = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi",
    ".ts": "mpegts", ".mts": "mpegts", ".m2ts": "mpegts",
}  # fmt: skip
"""Containers that are written, by suffix."""
PICTURES = {".png": "png", ".tif": "tiff", ".tiff": "tiff", ".jpg": "mjpeg", ".jpeg": "mjpeg"}
"""Codecs of image sequences, by suffix."""
OLDEST_AV = 18
NUMBER = re.compile(r"%(0?)(\d*)d")
ENCODERS = {
    "h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1", "prores": "prores_ks",
    "ffv1": "ffv1",
}  # fmt: skip
CRF = {"libx264": 16, "libx265": 18, "libvpx-vp9": 24, "libsvtav1": 24}
SETTINGS = {
    "libx265": {"x265-params": "log-level=error"},
    "libvpx-vp9": {"b": "0", "cpu-used": "2", "row-mt": "1"},
    "mjpeg": {"q": "2"},
}
READABLE = re.compile(r"yuvj?a?\d|gray\d*[lb]?e?$|gbra?p|rgb|nv12|nv16|nv24")
"""Pixel formats whose samples are whole numbers of one size, which faces can be written into."""


@dataclass(frozen=True)
class Encoding:
    """How frames are written.

    Attributes:
        encoder: FFmpeg's name.
        pixels: its pixel format.
        settings: of the encoder.
        notes: what of the input does not come through, a line each.
    """

    encoder: str
    pixels: str
    settings: dict[str, str]
    notes: tuple[str, ...] = ()


def load_av() -> Any:
    """Import PyAV. Raises VideoError with what to install where it is missing."""
    try:
        import av
    except ImportError as error:
        raise VideoError('videos need the extra for video: pip install "osdface[video]" (PyAV)') from error
    if int(av.__version__.split(".")[0]) < OLDEST_AV:
        raise VideoError(f"PyAV {av.__version__} is too old for videos: pip install --upgrade av")
    av.logging.set_level(av.logging.PANIC)  # damaged frames are counted; FFmpeg's own lines say less
    return av


def is_sequence(path: str | Path) -> bool:
    """Tell whether a path names numbered pictures, such as frame_%05d.png."""
    return NUMBER.search(Path(path).name) is not None and Path(path).suffix.lower() in PICTURES


def is_video(path: str | Path) -> bool:
    """Tell by its name whether a path is a video file or an image sequence."""
    return Path(path).suffix.lower() in VIDEOS or is_sequence(path)


def container_of(target: Path) -> str:
    """Return FFmpeg's name of the container that a path asks for.

    Raises:
        ConfigError: a suffix that no container here has.
    """
    if is_sequence(target):
        return "image2"
    if target.suffix.lower() not in WRITTEN:
        raise ConfigError(f"-o {target}: write videos as .mp4, .mov, .mkv, .webm, .avi, .ts or %05d.png")
    return WRITTEN[target.suffix.lower()]


def choose_encoding(
    codec: str, pixels: str, size: tuple[int, int], target: Path, options: VideoOptions
) -> Encoding:
    """Choose encoder and pixel format.

    Args:
        codec, pixels: the input's codec and pixel format, as FFmpeg names them.
        size: width and height of the result [px].
    Raises:
        ConfigError: the codec, quality or pixel format that was asked for is not to be had.
    """
    av = load_av()
    encoder = _encoder(codec, container_of(target), target, options.video_codec)
    names = [form.name for form in av.codec.Codec(encoder, "w").video_formats if READABLE.match(form.name)]
    source = _form({"pal8": "rgb24"}.get(pixels, pixels))
    usable = [name for name in names if options.pixel_format in (None, name)]
    if not usable:
        expected = f"one of {', '.join(names)} for {encoder}"
        raise OptionError("pixel_format", options.pixel_format, expected)
    if size[0] % 2 or size[1] % 2:  # half a chroma sample is not encoded
        usable = [name for name in usable if _chroma(_form(name)) in (0.0, 1.0)] or usable
    chosen = min(map(_form, usable), key=lambda form: _loss(source, form))
    notes: tuple[str, ...] = ()
    if _bits(chosen) < min(_bits(source), 10):
        notes = (f"{_bits(source)} bits become {_bits(chosen)}: {encoder} here has no more",)
    settings = dict(SETTINGS.get(encoder, {}))
    if encoder in CRF:
        settings["crf"] = str(CRF[encoder] if options.crf is None else options.crf)
    elif options.crf is not None:
        raise ConfigError(f"`crf` is {options.crf}, but {encoder} has no such quality; leave it out")
    return Encoding(encoder, chosen.name, settings, notes)


def _encoder(codec: str, container: str, target: Path, asked: str) -> str:
    """Return the first encoder that is here and that the container holds."""
    if container == "image2":
        if asked != "auto":
            raise ConfigError(f"`video_codec` is {asked!r}, but an image sequence needs none; leave it out")
        return PICTURES[target.suffix.lower()]
    names = [codec, "h264", "vp9"] if asked == "auto" else [asked]
    for name in names:
        if name in ENCODERS and _fits(ENCODERS[name], container):
            return ENCODERS[name]
    raise ConfigError(f"`video_codec`: {' or '.join(names)} cannot be written into {target.suffix} here")


def _fits(encoder: str, container: str) -> bool:
    av = load_av()
    try:
        with av.open(io.BytesIO(), "w", format=container) as probe:
            probe.add_stream(encoder)
    except ValueError:  # UnknownCodecError is one, too
        return False
    return True


def _form(name: str) -> VideoFormat:
    return load_av().VideoFormat(name, 64, 64)


def _bits(form: VideoFormat) -> int:
    return max(part.bits for part in form.components)


def _chroma(form: VideoFormat) -> float:
    """Samples of the second component per pixel: 1 for 4:4:4, 0.25 for 4:2:0; 0 for grey."""
    if len(form.components) < 3:
        return 0.0
    return form.components[1].width * form.components[1].height / (form.width * form.height)


def _loss(source: VideoFormat, form: VideoFormat) -> tuple[Any, ...]:
    """What a pixel format loses or adds: nothing for the same one; depth counts most, then chroma."""
    bits, chroma = _bits(form) - _bits(source), _chroma(form) - _chroma(source)
    parts = len(form.components) - len(source.components)
    lost = (bits < 0, chroma < 0, parts < 0, form.is_rgb != source.is_rgb)
    return (form.name != source.name, *lost, abs(bits), abs(chroma), abs(parts), "j" in form.name)
