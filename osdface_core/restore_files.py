"""One photo file in, one photo file out, with what belongs beside it; format and depth are kept."""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .color import keep_grey
from .errors import ImageError
from .faces.regions import FULL_SCALE
from .files import replacing
from .identity import load_identity, similarity
from .images import Photo, from_unit, read_photo, to_unit, write_photo
from .inputs import Guard, Job
from .photo import restore_photo
from .pipeline import OSDFacePipeline, Progress
from .report import comparison, crop_pictures, save_picture
from .upscale import resize_plane

SIDE = 512  # [px]; what square inputs of --aligned are resized to


@dataclass(frozen=True)
class Plan:
    """How every file of a run is treated.

    Attributes:
        options: for `photo.restore_photo`.
        aligned: inputs are face crops: no detection, no pasting.
        crops: folder for the aligned faces before and after.
        compare: write a before/after picture beside each result.
    """

    options: dict[str, Any] = field(default_factory=dict)
    aligned: bool = False
    crops: Path | None = None
    compare: bool = False


@dataclass(frozen=True)
class _Restored:
    pixels: np.ndarray
    faces: list[dict[str, Any]]
    crops: Tensor
    restored: Tensor


def compare_path(target: Path) -> Path:
    """Where the before/after picture of a result goes."""
    return target.with_name(f"{target.stem}_compare.png")


def restore_file(
    pipeline: OSDFacePipeline, job: Job, plan: Plan, guard: Guard, progress: Progress | None = None
) -> dict[str, Any]:
    """Restore one file.

    Returns:
        plain JSON types: input, output, width, height, seconds, faces (`Face.to_dict`).
    Raises:
        OSDFaceError: one line; nothing was overwritten.
    """
    start = time.perf_counter()
    guard.check(job.target)
    photo = read_photo(job.source)
    run = _restore_aligned if plan.aligned else _restore_photo
    done = run(pipeline, photo, plan.options, progress)
    if _untouched(job, photo, done, plan):
        _copy(job)
    else:
        write_photo(job.target, _with_pixels(photo, done.pixels))
    _write_extras(job, photo, done, plan, guard)
    height, width = done.pixels.shape[:2]
    return {
        "input": str(job.source),
        "output": str(job.target),
        "width": width,
        "height": height,
        "seconds": round(time.perf_counter() - start, 3),
        "faces": done.faces,
    }


def _restore_photo(
    pipeline: OSDFacePipeline, photo: Photo, options: dict[str, Any], progress: Progress | None
) -> _Restored:
    result = restore_photo(pipeline, photo.pixels, progress=progress, **options)
    faces = [face.to_dict() for face in result.faces]
    return _Restored(np.asarray(result.image), faces, result.crops, result.restored)


def _restore_aligned(
    pipeline: OSDFacePipeline, photo: Photo, options: dict[str, Any], progress: Progress | None
) -> _Restored:
    """Square crops at 512 px, others at their own size cut to multiples of 8, as the released code does."""
    face = to_unit(photo.pixels)[None]
    if face.shape[-1] == face.shape[-2] != SIDE:
        face = F.interpolate(face, (SIDE, SIDE), mode="bilinear", align_corners=True)
    keys = ("strength", "timestep", "color_fix", "batch_size")
    restored = pipeline.restore(face, progress=progress, **{k: options[k] for k in keys if k in options})
    face = face[..., : restored.shape[-2], : restored.shape[-1]]
    if photo.grey:
        restored = keep_grey(restored, face)
    done = from_unit(restored[0], photo.pixels.dtype)
    faces: list[dict[str, Any]] = []
    if options.get("identity") is not None:
        net = load_identity(options["identity"], pipeline.device)
        score = similarity(net, face.to(pipeline.device), restored.to(pipeline.device))
        faces.append({"identity_before_after": [1.0, float(score)]})
    return _Restored(done, faces, face, restored)


def _untouched(job: Job, photo: Photo, done: _Restored, plan: Plan) -> bool:
    """No face was found and nothing was resized: the file's own bytes are the best copy of it."""
    same_kind = job.source.suffix.lower() == job.target.suffix.lower()
    return same_kind and not plan.aligned and not done.faces and done.pixels.shape == photo.pixels.shape


def _copy(job: Job) -> None:
    try:
        with replacing(job.target) as temporary:
            shutil.copyfile(job.source, temporary)
    except OSError as error:
        raise ImageError(f"cannot write {job.target}: {error}; nothing was replaced") from error


def _with_pixels(photo: Photo, pixels: np.ndarray) -> Photo:
    """The photo with new pixels; transparency follows their size."""
    alpha = photo.alpha
    if alpha is not None and alpha.shape != pixels.shape[:2]:
        full = FULL_SCALE[str(alpha.dtype)]
        resized = resize_plane(alpha.astype(np.float32), pixels.shape[:2]).clip(0.0, full)
        alpha = (resized if full == 1.0 else resized.round()).astype(alpha.dtype)
    return dataclasses.replace(photo, pixels=pixels, alpha=alpha)


def _write_extras(job: Job, photo: Photo, done: _Restored, plan: Plan, guard: Guard) -> None:
    if plan.compare:
        save_picture(comparison(photo.pixels, done.pixels), guard.check(compare_path(job.target)))
    if plan.crops is not None:
        for path, picture in crop_pictures(done.crops, done.restored, plan.crops / job.name):
            save_picture(picture, guard.check(path))
