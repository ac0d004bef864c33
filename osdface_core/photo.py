"""A whole photo: detect and align, restore all faces as one batch, paste back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .choices import ColorFix, DetectorName, Effort, Order, PasteMode
from .faces.align import align
from .faces.face import Face
from .options import DetectOptions, PasteOptions, RestoreOptions
from .photo_array import PhotoArray, Pixels
from .pipeline import FacePipeline, OnProgress
from .steps import paste_back, restore_crops


@dataclass(frozen=True)
class PhotoResult:
    """What became of a photo.

    Attributes:
        image: of the input's kind and bit depth; `upscale` times its size. Outside the masks every pixel is
            the (enlarged) input's.
        mask: (1, H, W) tensor beside tensors, else (H, W) array; float32: 0 untouched, 1 fully restored.
        faces: the restored faces, in the input photo's pixels.
        crops, restored: (N, 3, 512, 512) in [0, 1], aligned faces before and after.
    """

    image: Pixels
    mask: Tensor | np.ndarray
    faces: list[Face]
    crops: Tensor
    restored: Tensor


def restore_photo(
    restorer: FacePipeline,
    photo: Pixels | str | Path,
    *,
    detector: DetectorName = "auto",
    detector_dir: str | Path | None = None,
    threshold: float = 0.9,
    effort: Effort = "auto",
    faces: str | Sequence[Face] = "all",
    min_face: float = 0,
    max_face: float | None = None,
    max_faces: int | None = None,
    order: Order = "size",
    strength: float = 1.0,
    fidelity: float = 1.0,
    timestep: int | None = None,
    color_fix: ColorFix = "none",
    batch_size: int | None = None,
    upscale: float = 1.0,
    upscale_model: str | Path | None = None,
    feather: float = 0.2,
    paste_mode: PasteMode = "residual",
    identity: str | Path | None = None,
    progress: OnProgress | None = None,
) -> PhotoResult:
    """Restore the faces of a photo; ranges and choices of the options stand in `options.py`.

    Args:
        photo: (3, H, W) float tensor in [0, 1] on any device; (H, W, 3) array of uint8, uint16 or float32; a
            Pillow image of 8 bits as it is (not turned by its EXIF orientation); or a path, whose result is
            an array of the file's depth, upright.
        detector, detector_dir, threshold, effort: see `faces.detect`.
        faces: all | largest | center | indices such as "0,2" | faces found earlier.
        min_face, max_face: sides of the face box [px]; others are left alone.
        max_faces, order: at most so many, the first in this order; see `faces.select`.
        strength, fidelity, timestep, color_fix, batch_size, progress: see `OSDFacePipeline.restore`.
        upscale: enlarge the photo first, so that small faces have room for their detail.
        upscale_model: a super-resolution model file for that (needs spandrel); Lanczos without one.
        feather, paste_mode: see `faces.paste`.
        identity: weights of the identity network; then each face carries `identity_before_after`.
    Raises:
        OptionError: an option outside its range or choices.
        ImageError, DetectorError: one line that says what is wrong and what to do.
    """
    looking = DetectOptions(
        detector, detector_dir, threshold, effort, faces, min_face, max_face, max_faces, order
    )
    restoring = RestoreOptions(strength, fidelity, timestep, color_fix, batch_size)
    pasting = PasteOptions(upscale, upscale_model, feather, paste_mode)
    if isinstance(photo, (str, Path)):
        from .images import read_photo

        photo = read_photo(photo).pixels
    found, crops = detect_and_align(photo, restorer.device, looking)
    restored = restore_crops(restorer, crops, restoring, progress)
    if identity is not None and found:
        found = with_identity(found, crops, restored, identity)
    image, mask = paste_back(photo, found, crops, restored, pasting)
    return PhotoResult(image, mask, found, crops, restored)


class OSDFacePipeline(FacePipeline):
    """One-step face restoration: of aligned faces as `FacePipeline`, and of whole photos.

    `pipeline(photo)` is `pipeline.restore_photo(photo)`.
    """

    restore_photo = restore_photo
    __call__ = restore_photo


def detect_and_align(
    photo: Pixels | PhotoArray, device: torch.device, options: DetectOptions
) -> tuple[list[Face], Tensor]:
    """Find and choose faces, and cut them out: the first step of `restore_photo`.

    Returns:
        the chosen faces and their crops (N, 3, 512, 512) on `device`.
    """
    from .faces.detect import detect_and_select

    photo = PhotoArray.of(photo)
    given = not isinstance(options.faces, str)
    found = list(options.faces) if given else detect_and_select(photo, options, device)
    return found, align(photo, found, device=device)


@torch.inference_mode()
def with_identity(faces: list[Face], crops: Tensor, restored: Tensor, weights: str | Path) -> list[Face]:
    """Add (1.0, cosine of the restored face to the original) to each face: the original is the measure."""
    from .models.identity import load_identity, similarity

    net = load_identity(weights, crops.device)
    scores = torch.cat(
        [similarity(net, a, b) for a, b in zip(crops.split(16), restored.split(16), strict=True)]
    )
    return [
        dataclasses.replace(f, identity_before_after=(1.0, s))
        for f, s in zip(faces, scores.tolist(), strict=True)
    ]
