"""What is behind the tabs: photos, folders and videos as the command line restores them, and Cancel."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..cli.batch import FileRestorer, Plan
from ..cli.info import as_text, describe
from ..cli.inputs import Folder, Guard, Job
from ..cli.report import Tally, failure_line, viewable
from ..cli.restore import refuse_in_folder, runner_for, unfinished
from ..devices import pick_device
from ..errors import ConfigError
from ..faces import Face
from ..faces.detect import detect_and_select
from ..faces.draw import draw_boxes
from ..images import read_photo, written_suffix
from ..interruption import checked
from ..loading import resolve
from ..options import DetectOptions, LoadOptions, PasteOptions, RestoreOptions, pick
from ..photo import OSDFacePipeline
from ..photo_array import PhotoArray
from ..pipeline import OnProgress
from ..video import restore_video
from .models import model_names, model_path

SHOWN = 2048  # [px], longer side of a picture in the page
TOLD = 50
"""Most photos of a folder that are named in the page."""


class Stopped(KeyboardInterrupt):
    """Cancel was pressed; it ends a run as Ctrl-C does, which keeps what is done."""


@dataclass(frozen=True)
class Press:
    """A press of a button: whose it was, and when [s], on the clock of `time.monotonic`."""

    visitor: str
    moment: float


@dataclass(frozen=True)
class Found:
    """The faces of a photo, in its pixels, and the photo at the size of the page, `scale` times its own."""

    source: Path
    shown: Image.Image
    scale: float
    faces: list[Face]

    def drawn(self, ticked: Sequence[int]) -> Image.Image:
        """Draw numbered boxes, grey where a face is not ticked."""
        picture = self.shown.copy()
        boxes = [face.scaled(self.scale).box for face in self.faces]
        numbers = range(len(boxes))
        draw_boxes(picture, boxes, list(map(str, numbers)), [n if n in ticked else None for n in numbers])
        return picture

    def toggled(self, ticked: Sequence[int], x: float, y: float) -> list[int]:
        """Tick or untick the face at a point of the shown picture [px]: the smallest there, if any."""
        x, y = x / self.scale, y / self.scale
        here = [
            (face.size, number)
            for number, face in enumerate(self.faces)
            if face.box[0] <= x <= face.box[2] and face.box[1] <= y <= face.box[3]
        ]
        return sorted(set(ticked) ^ {number for _, number in sorted(here)[:1]})


@dataclass(frozen=True)
class Restored:
    """A result: the file, what is to be said about it, and for a photo pictures before and after."""

    file: Path | None
    lines: list[str]
    pictures: tuple[Image.Image, Image.Image] | None = None


class Workshop:
    """One model in memory, and one piece of work at a time.

    Args:
        options: which model is offered first, and how all of them run.
        models: a folder with further models.
        results: where restored photos and videos go.
        places: values of options that name files of this machine, which the page does not ask for.
    """

    def __init__(
        self, options: LoadOptions, models: Path | None, results: Path, places: Mapping[str, Any]
    ) -> None:
        self.options, self.models, self.results, self.places = options, models, results, places
        self._pipeline: OSDFacePipeline | None = None
        self._loaded = ""
        self._cancelled: dict[str, float] = {}
        self._busy, self._closed = threading.Lock(), False

    def names(self) -> list[str]:
        """List the models to choose from, the first of them as the command line named it."""
        first = str(self.options.source)
        return [first, *(name for name in model_names(self.models) if name != first)]

    def card(self, name: str) -> str:
        """Describe a model: its header, and the README beside it. Raises CheckpointError."""
        path = resolve(self._path(name))
        readme = (path if path.is_dir() else path.parent) / "README.md"
        told = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        lines = [line for line in told.splitlines() if not line.startswith("![")]  # its folder is not served
        about = "\n".join(lines) or "No licence is named here: ask where the file comes from."
        return f"```text\n{as_text(describe(path))}\n```\n\n{about}"

    def find(self, source: Path, values: Mapping[str, Any]) -> Found:
        """Find the faces of a photo. Raises OSDFaceError."""
        photo = read_photo(source)
        options = pick(DetectOptions, {**values, **self.places})
        faces = detect_and_select(PhotoArray.of(photo.pixels), options, pick_device(self.options.device))
        shown = viewable(photo.pixels, SHOWN)
        return Found(source, shown, shown.width / photo.pixels.shape[1], faces)

    def photo(
        self, press: Press, found: Found, ticked: Sequence[int], model: str, values: Mapping[str, Any],
        progress: OnProgress,
    ) -> Restored:  # fmt: skip
        """Restore the ticked faces of a photo. Raises OSDFaceError."""
        if not ticked:
            raise ConfigError("no face is chosen: tick at least one")
        faces = [found.faces[number] for number in ticked]
        target = self._target(found.source, written_suffix(found.source.suffix))
        with self._stopped_by(press) as check:
            restorer = FileRestorer(
                self._load(model), self._plan(values, faces), Guard([found.source]), _also(check, progress)
            )
            work = restorer.restore(restorer.prepare(Job(found.source, target, Path(target.stem))))
        record = restorer.finish(work)
        after = viewable(read_photo(target).pixels, SHOWN)
        before = found.shown.resize(after.size, Image.Resampling.LANCZOS)
        lines = [f"{target.name}: {_faces(record)}, {record['seconds']:.1f} s", *record["notes"]]
        return Restored(target, lines, (before, after))

    def folder(
        self, press: Press, source: str, target: str, redo: bool, model: str, values: Mapping[str, Any],
        progress: OnProgress,
    ) -> list[str]:  # fmt: skip
        """Restore the photos of a folder that have no newer result, and tell what became of them.

        Raises:
            OSDFaceError: the folders or options do not fit together; nothing was touched.
        """
        if not source.strip() or not target.strip():
            raise ConfigError("give a folder with photos, and one for their results")
        root, out = Path(source.strip()).expanduser(), Path(target.strip()).expanduser()
        if not root.is_dir() or (out.exists() and not out.is_dir()):
            raise ConfigError(f"{root if not root.is_dir() else out} is no folder: check the path")
        jobs = Folder(root, out)
        tally, lines = Tally(), [f"{item.source}: {item.reason}" for item in jobs.missing]
        refuse_in_folder(jobs, [out])  # knows where links lead, after that first listing

        def tell(job: Job, result: Any) -> None:
            failed = isinstance(result, Exception)
            tally.add({"error": result} if failed else result)
            told = [failure_line(result, "webui")] if failed else result["notes"]
            lines.extend(f"{job.source}: {line}" for line in told)
            progress(tally.done + tally.failed + tally.skipped, len(jobs))

        try:
            with self._stopped_by(press) as check:
                pipeline, plan = self._load(model), self._plan(values)
                restorer = FileRestorer(pipeline, plan, Guard(jobs), lambda done, total: check())
                todo = iter(jobs) if redo else unfinished(jobs, tally)
                runner_for(pipeline, jobs)(todo, restorer, tell)
        except Stopped:
            lines.insert(0, "Stopped. Restore the same folder again, and it goes on from there.")
        more = [f"… and {len(lines) - TOLD} more"] if len(lines) > TOLD else []
        return [_summary(tally), *lines[:TOLD], *more]

    def video(
        self, press: Press, source: Path, model: str, values: Mapping[str, Any], progress: OnProgress
    ) -> Restored:
        """Restore a video; one that is stopped plays as far as it is done. Raises OSDFaceError."""
        target = self._target(source, source.suffix)
        options = {**values, **self.places}
        try:
            with self._stopped_by(press) as check:
                pipeline = self._load(model)
                result = restore_video(pipeline, source, target, progress=_also(check, progress), **options)
        except Stopped:
            said = "Stopped. Restore the same video with the same options again, and it goes on from there."
            return Restored(target if target.is_file() else None, [said])
        again = f", {result.resumed} of them before" if result.resumed else ""
        line = f"{target.name}: {result.frames} frames{again}, {result.faces} faces, {result.seconds:.1f} s"
        broken = [f"{result.broken} damaged frames passed through"] if result.broken else []
        return Restored(target, [line, *broken, *result.notes])

    def cancel(self, visitor: str) -> None:
        """Stop what a visitor has asked for up to now, before the next layer of the model."""
        self._cancelled[visitor] = time.monotonic()

    def close(self) -> None:
        """Stop everybody's work, and wait until what is done is safe."""
        self._closed = True
        with self._busy:
            pass

    @contextmanager
    def _stopped_by(self, press: Press) -> Iterator[Callable[[], None]]:
        def check() -> None:
            if self._closed or self._cancelled.get(press.visitor, 0.0) > press.moment:
                raise Stopped

        with self._busy, checked(check):
            check()
            yield check

    def _load(self, name: str) -> OSDFacePipeline:
        if self._pipeline is None or name != self._loaded:
            self._pipeline = None  # the former model gives its memory back first
            options = dataclasses.replace(self.options, source=self._path(name))
            self._pipeline, self._loaded = OSDFacePipeline.from_pretrained(**vars(options)), name
        return self._pipeline

    def _path(self, name: str) -> str | Path:
        first = self.options.source
        return first if name == str(first) else model_path(name, self.models)

    def _target(self, source: Path, suffix: str) -> Path:
        """A place for a result: the same for the same upload, whose folder Gradio names by its content."""
        return self.results / f"{source.stem}_{source.parent.name[:8]}{suffix}"

    def _plan(self, values: Mapping[str, Any], faces: list[Face] | None = None) -> Plan:
        values = {**values, **self.places} | ({} if faces is None else {"faces": faces})
        return Plan(pick(DetectOptions, values), pick(RestoreOptions, values), pick(PasteOptions, values))


def _also(check: Callable[[], None], progress: OnProgress) -> OnProgress:
    def told(done: int, total: int) -> None:
        check()
        progress(done, total)

    return told


def _faces(record: Mapping[str, Any]) -> str:
    count = len(record["faces"])
    return f"{count} face{'' if count == 1 else 's'}"


def _summary(tally: Tally) -> str:
    skipped = f", {tally.skipped} skipped (their results are there and newer)" if tally.skipped else ""
    return f"{tally.done} restored, {tally.failed} failed{skipped}"
