"""A video from file to file, as a stream: read, find, follow, restore, paste, write."""

from __future__ import annotations

import dataclasses
import time as clock
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, ImageError, OptionError
from ..faces.align import align
from ..options import DetectOptions, PasteOptions, RestoreOptions, VideoOptions, options_of, pick
from ..pipeline import FacePipeline, OnProgress
from ..steps import paste_back, restore_crops
from .ahead import ahead, undisturbed
from .follow import EVERY, WARM_UP, FaceFinder, Shot, steadied
from .formats import choose_encoding
from .pixels import converted, from_pixels, with_change
from .reader import VideoReader
from .steady import ChangeSteadier
from .writer import VideoWriter

BATCH = 8
"""Faces of neighbouring frames that go through the model together, unless `batch_size` says more."""
SEGMENT = 256
"""Frames after which what is done survives a killed process."""


@dataclass(frozen=True)
class VideoPlan:
    """How a video is treated: which faces, what becomes of them, how it is written."""

    detect: DetectOptions = field(default_factory=DetectOptions)
    restore: RestoreOptions = field(default_factory=RestoreOptions)
    paste: PasteOptions = field(default_factory=PasteOptions)
    video: VideoOptions = field(default_factory=VideoOptions)


@dataclass(frozen=True)
class VideoResult:
    """What became of a video.

    Attributes:
        frames: written.
        faces: restored, over all frames.
        broken: frames that passed through unchanged, or are missing, because they could not be read.
        resumed: frames that an earlier run had done.
        seconds: that this run took.
        notes: what of the input did not come through, a line each.
    """

    frames: int
    faces: int
    broken: int
    resumed: int
    seconds: float
    notes: tuple[str, ...]


def restore_video(
    pipeline: FacePipeline,
    source: str | Path,
    target: str | Path,
    *,
    progress: OnProgress | None = None,
    **options: Any,
) -> VideoResult:
    """Restore the faces of a video; sound, subtitles, chapters, times, rotation and colour tags stay.

    A run that is interrupted leaves what is done as a playable file, and the same call goes on from there.

    Args:
        source: a video file, or an image sequence such as "frame_%05d.png".
        target: .mp4, .mov, .mkv, .webm, .avi or .ts, or an image sequence.
        progress: called with (frames done, frames in all; 0: not known).
        options: as for `restore_photo` (but `identity`; `faces` is a word or numbers), and those of
            `options.VideoOptions`: video_codec, crf, pixel_format, fps.
    Raises:
        OptionError: an option outside its range or choices.
        ConfigError: the target cannot hold what was asked for.
        VideoError, DetectorError: one line that says what is wrong and what to do.
    """
    sets = DetectOptions, RestoreOptions, PasteOptions, VideoOptions
    known = {name for one in sets for name in options_of(one)}
    for name in options.keys() - known:
        raise OptionError(name, options[name], f"one of {', '.join(sorted(known))}")
    plan = VideoPlan(
        pick(DetectOptions, options), pick(RestoreOptions, options),
        pick(PasteOptions, options), pick(VideoOptions, options),
    )  # fmt: skip
    model = [repr(pipeline.config), pipeline.training, str(pipeline.dtype)]
    return restore_stream(
        source,
        target,
        lambda crops: restore_crops(pipeline, crops, plan.restore),
        pipeline.device,
        plan,
        model=model,
        threads=pipeline.engine.overlaps,
        progress=progress,
    )


def restore_stream(
    source: str | Path,
    target: str | Path,
    restore: Callable[[Tensor], Tensor],
    device: torch.device,
    plan: VideoPlan,
    *,
    model: object = None,
    threads: bool = False,
    progress: OnProgress | None = None,
) -> VideoResult:
    """Restore a video by any function of crops; see `restore_video`.

    Args:
        restore: (N, 3, 512, 512) in [0, 1] to the same, restored.
        device: where faces are found and cut out.
        model: JSON that names the model: only a run with the same one is continued.
        threads: whether reading and finding run beside the model.
    """
    if not isinstance(plan.detect.faces, str):
        raise OptionError("faces", plan.detect.faces, "a word or numbers: faces move in a video")
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if source.resolve() == target.resolve():
        raise ConfigError(f"{target} is the input and is never overwritten; give another place")
    start = clock.perf_counter()
    reader = VideoReader(source, plan.video.fps)
    run = _Run(reader, target, plan, device, model)
    try:
        shots = ahead(run.shots(), 2 if threads else 0)
        restored = ahead(_through(batches(shots, device, plan), restore), 1 if threads else 0)
        with closing(restored):
            for batch in restored:
                for shot, crops, after in batch:
                    with undisturbed():
                        run.take(shot, crops, after)
                    if progress:
                        progress(run.done, max(reader.total, run.done))
        run.end()
        run.writer.finish()
    except BaseException as error:
        run.interrupted(keep=isinstance(error, KeyboardInterrupt))
        raise
    run.writer.journal.delete()
    seconds = round(clock.perf_counter() - start, 3)
    return VideoResult(run.done, run.faces, run.broken + reader.broken, run.resumed, seconds, run.notes)


class _Run:
    """One video on its way: what is done, and where it goes."""

    def __init__(
        self, reader: VideoReader, target: Path, plan: VideoPlan, device: torch.device, model: object
    ) -> None:
        self.reader, self.plan, self.device = reader, plan, device
        frame = reader.first
        picture, scale = frame.picture, plan.paste.upscale
        size = round(picture.width * scale), round(picture.height * scale)
        codec = reader.stream.codec_context.name
        self.encoding = choose_encoding(codec, picture.format.name, size, target, plan.video)
        self.writer = VideoWriter(reader, target, self.encoding, size, self._job(model))
        self.notes = self.encoding.notes + self.writer.notes
        state = self.writer.journal.state
        self.done = self.resumed = int(state.get("frames", 0))
        self.faces, self.broken = int(state.get("faces", 0)), int(state.get("broken", 0))
        self.until = float(state.get("until", 0.0))
        self.steadier = ChangeSteadier()

    def _job(self, model: object) -> dict[str, Any]:
        """What a run must share with an earlier one to continue it."""
        sets = (dataclasses.asdict(part) for part in vars(self.plan).values())
        path = self.reader.path
        stamp = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
        options = [{name: str(value) for name, value in one.items()} for one in sets]
        return {"source": str(path.resolve()), "stamp": stamp, "options": options, "model": model}

    def shots(self) -> Iterator[Shot]:
        """Yield the frames from a little before the first that is not done, with their faces."""
        begin = max(0, self.done - WARM_UP) // EVERY * EVERY
        frames = (frame for frame in self.reader if frame.number >= begin)
        useful = max(0, self.done - WARM_UP + EVERY)
        shots = steadied(FaceFinder(self.plan.detect, self.device).shots(frames), self.plan.detect)
        useful = useful if begin else 0
        return (shot for shot in shots if shot.frame.number >= useful)

    def take(self, shot: Shot, crops: Tensor, restored: Tensor) -> None:
        """Steady, paste and encode one frame, if it is not done yet."""
        frame = shot.frame
        restored = self.steadier(shot.faces, crops, restored, frame.time)
        if frame.number < self.done:
            return
        self.broken += frame.broken
        self.faces += len(shot.faces)
        self.writer.write(self._pasted(shot, crops, restored))
        self.done, self.until = frame.number + 1, frame.time
        if self.done % SEGMENT == 0:
            self.end()

    def _pasted(self, shot: Shot, crops: Tensor, restored: Tensor) -> Any:
        frame, form = shot.frame, self.encoding.pixels
        larger = self.plan.paste.upscale != 1.0
        if not shot.faces and not larger:
            return converted(frame.picture, form)
        before = frame.pixels()
        image, _ = paste_back(before, shot.faces, crops, restored, self.plan.paste)
        after = np.asarray(image)
        if larger:
            return from_pixels(after, frame.picture, form, frame.turns)
        return with_change(frame.picture, before, after, form, frame.turns)

    def end(self) -> None:
        """Make what is done permanent."""
        state = {"frames": self.done, "faces": self.faces, "broken": self.broken, "until": self.until}
        self.writer.end_segment(state)

    def interrupted(self, keep: bool) -> None:
        """Save what is done; with `keep` also as a file that plays."""
        with undisturbed(), suppress(Exception):  # the reason for the end is what is told
            self.end()
            if keep and self.done:
                self.writer.finish(self.until)
        self.writer.journal.close()


Batch = list[tuple[Shot, Tensor, Tensor]]
"""Neighbouring frames, each with its crops before and after restoration."""


def batches(shots: Iterable[Shot], device: torch.device, plan: VideoPlan) -> Iterator[Batch]:
    """Cut the faces out and gather frames until the model has enough to do; not restored yet."""
    batch: Batch = []
    wanted = plan.restore.batch_size or BATCH
    for shot in shots:
        crops = _cut(shot, device)
        batch.append((shot, crops, crops))
        if len(batch) >= EVERY or sum(len(crops) for _, crops, _ in batch) >= wanted:
            yield batch
            batch = []
    if batch:
        yield batch


def _cut(shot: Shot, device: torch.device) -> Tensor:
    if not shot.faces:
        return torch.empty(0, 3, 512, 512, device=device)
    try:
        return align(shot.frame.pixels(), shot.faces, device=device)
    except ImageError:  # a face that moved out of the picture: the frame stays as it is
        shot.faces, shot.frame.broken = [], True
        return _cut(shot, device)


def _through(parts: Iterable[Batch], restore: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
    for batch in parts:
        crops = torch.cat([crops for _, crops, _ in batch])
        restored = restore(crops) if len(crops) else crops
        pieces = restored.split([len(crops) for _, crops, _ in batch])
        yield [(shot, before, after) for (shot, before, _), after in zip(batch, pieces, strict=True)]
