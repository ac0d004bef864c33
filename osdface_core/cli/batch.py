"""Restore many photo files: each in three steps, the steps of several files side by side.

Format and depth of a file are kept.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..devices import is_out_of_memory
from ..errors import ImageError
from ..faces import Face
from ..files import writing
from ..images import Photo, check_alpha, from_unit, read_photo, to_unit, write_photo
from ..models.identity import load_identity, similarity
from ..options import DetectOptions, PasteOptions, RestoreOptions, parse_faces
from ..photo import detect_and_align, paste_back, restore_crops, with_identity
from ..photo_array import FULL_SCALE
from ..pipeline import FacePipeline, OnProgress
from ..upscale import resize_plane
from .attention import attention_maps, attention_picture
from .inputs import Guard, Job
from .report import comparison, crop_pictures, save_picture

SIDE = 512  # [px]; what square inputs of --aligned are resized to
PASSING = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EAGAIN", "EBUSY", "ESTALE", "ETIMEDOUT", "ECONNRESET", "EHOSTDOWN", "ENETDOWN")
    if hasattr(errno, name)
)
"""Errors of disks and networks that may be gone a moment later."""
PAUSE = 1.0  # [s] before the second attempt


@dataclass(frozen=True)
class Plan:
    """How every file of a run is treated.

    Attributes:
        detect, restore, paste: which faces, and what becomes of them.
        identity: weights of a recognition network, for scores.
        aligned: inputs are face crops: no detection, no pasting.
        crops: folder for the aligned faces before and after.
        compare: write a before/after picture beside each result.
        attention: folder for pictures of where the tokens in `tokens` are looked at.
        prompt: a photo's prompt (1, 77, D), or None for the faces' own.
    """

    detect: DetectOptions = field(default_factory=DetectOptions)
    restore: RestoreOptions = field(default_factory=RestoreOptions)
    paste: PasteOptions = field(default_factory=PasteOptions)
    identity: str | Path | None = None
    aligned: bool = False
    crops: Path | None = None
    compare: bool = False
    attention: Path | None = None
    tokens: tuple[int, ...] = ()
    prompt: Callable[[Path], Tensor | None] | None = None


@dataclass
class Work:
    """One photo on its way.

    Attributes:
        crops, restored: (N, 3, H, W) in [0, 1], faces before and after.
        seconds: what each stage took: read, detect (with align), model, paste, write.
        attention: a picture of each face, if they are wanted.
    """

    job: Job
    photo: Photo
    faces: list[Face]
    crops: Tensor
    restored: Tensor
    seconds: dict[str, float]
    attention: list[Image.Image] = field(default_factory=list)


def compare_path(target: Path) -> Path:
    """Name the before/after picture of a result."""
    return target.with_name(f"{target.stem}_compare.png")


class FileRestorer:
    """The three steps that restore a file. Steps of different files may run at the same time in threads.

    All of them raise OSDFaceError: one line; nothing was overwritten.
    """

    def __init__(
        self, pipeline: FacePipeline, plan: Plan, guard: Guard, progress: OnProgress | None = None
    ) -> None:
        self.pipeline = pipeline
        self.plan = plan
        self.guard = guard
        self.progress = progress

    def prepare(self, job: Job) -> Work:
        """Read the photo, find and align its faces."""
        return twice(self._prepare, job)

    def _prepare(self, job: Job) -> Work:
        start = time.perf_counter()
        self.guard.check(job.target)
        photo = read_photo(job.source)
        check_alpha(job.target, photo)  # before the model has worked for nothing
        read = time.perf_counter()
        faces: list[Face] = []
        if self.plan.aligned:
            crops = _aligned_face(photo)
        else:
            faces, crops = detect_and_align(photo.pixels, self.pipeline.device, self.plan.detect)
        seconds = {"read": read - start, "detect": time.perf_counter() - read}
        return Work(job, photo, faces, crops, crops, seconds)

    def restore(self, work: Work) -> Work:
        """Run the model on its faces."""
        start = time.perf_counter()
        prompt = self.plan.prompt(work.job.source) if self.plan.prompt else None
        given = work.crops, self.plan.restore, self.progress, prompt
        work.restored = twice(restore_crops, self.pipeline, *given)
        if self.plan.attention is not None:
            work.attention = self._attention(work.crops, prompt)
        work.seconds["model"] = time.perf_counter() - start
        return work

    def _attention(self, crops: Tensor, prompt: Tensor | None) -> list[Image.Image]:
        """Draw here, not in `finish`: the UNet takes one thread's recorders at a time."""
        crops = crops[..., : crops.shape[-2] // 8 * 8, : crops.shape[-1] // 8 * 8]
        maps = attention_maps(self.pipeline, crops, self.plan.restore.timestep, prompt)
        pairs = zip(crops, maps, strict=True)
        return [attention_picture(face, of_face, self.plan.tokens) for face, of_face in pairs]

    def restore_together(self, works: Sequence[Work]) -> list[Exception | None]:
        """Run the model on the faces of several photos at once.

        Args:
            works: at least one.
        Returns:
            what each photo failed with, if it did; the others are restored.
        """
        start = time.perf_counter()
        try:
            crops = torch.cat([work.crops for work in works])  # fails for --aligned inputs of several sizes
            restored = twice(restore_crops, self.pipeline, crops, self.plan.restore)
        except Exception:
            results = [_attempt(self.restore, work) for work in works]
            return [result if isinstance(result, Exception) else None for result in results]
        for work, part in zip(works, restored.split([len(work.crops) for work in works]), strict=True):
            work.restored = part
            work.seconds["model"] = (time.perf_counter() - start) / len(works)
        return [None] * len(works)

    def finish(self, work: Work) -> dict[str, Any]:
        """Paste the faces, write the photo and what belongs beside it: the photo last, as all is then done.

        Returns:
            plain JSON types: input, output, width, height, seconds, stages (`Work.seconds`), faces
            (`Face.to_dict`), notes (metadata and chosen faces that are left out, a line each).
        """
        start = time.perf_counter()
        pixels, faces = self._aligned(work) if self.plan.aligned else self._pasted(work)
        pasted = time.perf_counter()
        twice(self._write_extras, work, pixels)
        notes = twice(self._write, work, pixels)
        if not self.plan.aligned:
            notes += _absent(len(work.faces), self.plan.detect)
        work.seconds |= {"paste": pasted - start, "write": time.perf_counter() - pasted}
        return {
            "input": str(work.job.source),
            "output": str(work.job.target),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "seconds": round(sum(work.seconds.values()), 3),
            "stages": {name: round(value, 4) for name, value in work.seconds.items()},
            "faces": faces,
            "notes": list(notes),
        }

    def _pasted(self, work: Work) -> tuple[np.ndarray, list[dict[str, Any]]]:
        faces, identity = work.faces, self.plan.identity
        if identity is not None and faces:
            faces = with_identity(faces, work.crops, work.restored, identity)
        # A giant is held once, unless it is to be shown beside its result.
        in_place = not self.plan.compare
        pixels = work.photo.pixels
        image, _ = paste_back(pixels, faces, work.crops, work.restored, self.plan.paste, in_place=in_place)
        return np.asarray(image), [face.to_dict() for face in faces]

    def _aligned(self, work: Work) -> tuple[np.ndarray, list[dict[str, Any]]]:
        faces: list[dict[str, Any]] = []
        identity = self.plan.identity
        before = work.crops[..., : work.restored.shape[-2], : work.restored.shape[-1]]
        work.crops = before
        if identity is not None:
            device = self.pipeline.device
            score = similarity(load_identity(identity, device), before.to(device), work.restored.to(device))
            faces.append({"identity_before_after": [1.0, float(score)]})
        return from_unit(work.restored[0], work.photo.pixels.dtype), faces

    def _write(self, work: Work, pixels: np.ndarray) -> tuple[str, ...]:
        if not _untouched(work, pixels, self.plan):
            return work.photo.notes + write_photo(work.job.target, _with_pixels(work.photo, pixels))
        with writing(work.job.target, ImageError) as temporary:
            shutil.copyfile(work.job.source, temporary)
        return ()

    def _write_extras(self, work: Work, pixels: np.ndarray) -> None:
        if self.plan.compare:
            path = self.guard.check(compare_path(work.job.target))
            save_picture(comparison(work.photo.pixels, pixels), path)
        if self.plan.crops is not None:
            for path, picture in crop_pictures(work.crops, work.restored, self.plan.crops / work.job.name):
                save_picture(picture, self.guard.check(path))
        for number, picture in enumerate(work.attention):
            assert self.plan.attention is not None
            path = self.plan.attention / work.job.name
            path = path.with_name(f"{path.name}_face{number}_attention.png")
            save_picture(picture, self.guard.check(path))


def _aligned_face(photo: Photo) -> Tensor:
    """Square crops at 512 px, others at their own size, which the model cuts to multiples of 8."""
    face = to_unit(photo.pixels)[None]
    if face.shape[-1] == face.shape[-2] != SIDE:
        face = F.interpolate(face, (SIDE, SIDE), mode="bilinear", align_corners=True)
    return face


def _absent(found: int, options: DetectOptions) -> tuple[str, ...]:
    """A line where a photo has fewer faces than `faces` has numbers."""
    numbers = parse_faces(options.faces) if isinstance(options.faces, str) else None
    wanted = min(len(numbers or ()), options.max_faces or len(numbers or ()))
    if found >= wanted:
        return ()
    return (f"`faces` {options.faces}: {found} of {wanted} found; numbers count from 0",)


def _untouched(work: Work, pixels: np.ndarray, plan: Plan) -> bool:
    """No face was found and nothing was resized: the file's own bytes are the best copy of it."""
    same_kind = work.job.source.suffix.lower() == work.job.target.suffix.lower()
    return same_kind and not plan.aligned and not work.faces and pixels.shape == work.photo.pixels.shape


def _with_pixels(photo: Photo, pixels: np.ndarray) -> Photo:
    """The photo with new pixels; transparency follows their size."""
    alpha = photo.alpha
    if alpha is not None and alpha.shape != pixels.shape[:2]:
        full = FULL_SCALE[str(alpha.dtype)]
        resized = resize_plane(alpha.astype(np.float32), pixels.shape[:2]).clip(0.0, full)
        alpha = (resized if full == 1.0 else resized.round()).astype(alpha.dtype)
    return dataclasses.replace(photo, pixels=pixels, alpha=alpha)


def twice(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call once more after a failure that may be gone: memory that ran out, a disk or network that failed."""
    try:
        return call(*arguments)
    except Exception as error:
        if not _may_pass(error):
            raise
    torch.cuda.empty_cache()
    time.sleep(PAUSE)
    return call(*arguments)


def _may_pass(error: BaseException | None) -> bool:
    if error is None:
        return False
    if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in PASSING):
        return True
    return _may_pass(error.__cause__)


class Steps(Protocol):
    """What happens to an item; each step takes what the one before returned."""

    def prepare(self, item: Any, /) -> Any: ...
    def restore(self, work: Any, /) -> Any: ...
    def finish(self, work: Any, /) -> Any: ...


Tell = Callable[[Any, Any], None]
"""Told an item and its result, or the Exception that it failed with; in the items' order."""


def one_by_one(items: Iterable[Any], steps: Steps, tell: Tell) -> None:
    """Take all steps of an item, then those of the next."""
    for item in items:
        tell(item, _attempt(lambda item=item: steps.finish(steps.restore(steps.prepare(item)))))


def overlapped(items: Iterable[Any], steps: Steps, tell: Tell) -> None:
    """Restore an item while one thread prepares the next and another finishes the last.

    At most three items are held, whatever their number. `tell` is called from the finishing thread. An
    interruption still lets the item that is being finished end whole.
    """
    rest = iter(items)
    ahead, behind = ThreadPoolExecutor(1, "prepare"), ThreadPoolExecutor(1, "finish")
    finishing: Future[None] | None = None
    try:
        coming = _submit(ahead, steps, rest)
        while coming:
            item, prepared = coming
            work = _attempt(prepared.result)
            coming = _submit(ahead, steps, rest)
            if not isinstance(work, Exception):
                work = _attempt(steps.restore, work)
            if finishing:
                finishing.result()  # the model never runs further ahead than one item
            finishing = behind.submit(_finish, steps, tell, item, work)
        if finishing:
            finishing.result()
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)
        behind.shutdown()


def _submit(ahead: ThreadPoolExecutor, steps: Steps, rest: Iterable[Any]) -> tuple[Any, Future[Any]] | None:
    for item in rest:
        return item, ahead.submit(steps.prepare, item)
    return None


def _finish(steps: Steps, tell: Tell, item: Any, work: Any) -> None:
    tell(item, work if isinstance(work, Exception) else _attempt(steps.finish, work))


def _attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or the Exception it raised: one bad item must not cost the other thousand."""
    try:
        return call(*arguments)
    except Exception as error:
        return error
