"""A whole photo: detect, align, restore all faces as one batch, paste back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .color import keep_grey
from .faces import Face, align, detect, paste, select
from .faces.regions import Photo, photo_shape
from .images import read_photo
from .models.identity import load_identity, similarity
from .options import ColorFix, DetectorName, Effort, Order, PasteMode
from .upscale import enlarge

if TYPE_CHECKING:
    from .pipeline import OSDFacePipeline, Progress

PhotoInput = Photo | str | Path


@dataclass(frozen=True)
class PhotoResult:
    """What became of a photo.

    Attributes:
        image: of the input's kind and bit depth; `upscale` times its size. Outside the masks every pixel is
            the (enlarged) input's.
        mask: (1, H, W) tensor or (H, W) array, float32: 0 untouched, 1 fully restored.
        faces: the restored faces, in the input photo's pixels.
        crops, restored: (N, 3, 512, 512) in [0, 1], aligned faces before and after.
    """

    image: Photo
    mask: Photo
    faces: list[Face]
    crops: Tensor
    restored: Tensor


def restore_photo(
    pipeline: OSDFacePipeline,
    photo: PhotoInput,
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
    timestep: int | None = None,
    color_fix: ColorFix = "none",
    upscale: float = 1.0,
    upscale_model: str | Path | None = None,
    feather: float = 0.2,
    paste_mode: PasteMode = "residual",
    identity: str | Path | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> PhotoResult:
    """Restore the faces of a photo.

    Args:
        photo: (3, H, W) float tensor in [0, 1] on any device, an (H, W, 3) array of uint8, uint16 or float32,
            or a path (then the result is an array of the file's depth).
        detector, detector_dir, threshold, effort: see `faces.detect`.
        faces: all | largest | center | indices such as "0,2" | faces found earlier.
        min_face, max_face: sides of the face box [px]; others are left alone.
        max_faces, order: at most so many, the first in this order; see `faces.select`.
        strength, timestep, color_fix, batch_size, progress: see `OSDFacePipeline.restore`.
        upscale: enlarge the photo first, so that small faces have room for their detail.
        upscale_model: a super-resolution model file for that (needs spandrel); Lanczos without one.
        feather, paste_mode: see `faces.paste`.
        identity: weights of the identity network; then each face carries `identity_before_after`.
    Raises:
        ImageError, DetectorError: one line that says what is wrong and what to do.
    """
    if isinstance(photo, (str, Path)):
        photo = read_photo(photo).pixels
    found, crops = locate(
        photo,
        pipeline.device,
        detector=detector,
        detector_dir=detector_dir,
        threshold=threshold,
        effort=effort,
        faces=faces,
        min_face=min_face,
        max_face=max_face,
        max_faces=max_faces,
        order=order,
    )
    restored = renew(
        pipeline,
        crops,
        strength=strength,
        timestep=timestep,
        color_fix=color_fix,
        batch_size=batch_size,
        progress=progress,
    )
    if identity is not None and found:
        found = with_identity(found, crops, restored, identity)
    image, mask = put_back(
        photo,
        found,
        crops,
        restored,
        upscale=upscale,
        upscale_model=upscale_model,
        feather=feather,
        paste_mode=paste_mode,
    )
    return PhotoResult(image, mask, found, crops, restored)


def locate(
    photo: Photo,
    device: torch.device,
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
) -> tuple[list[Face], Tensor]:
    """First step of `restore_photo`: the chosen faces and their crops (N, 3, 512, 512) on `device`."""
    shape = photo_shape(photo)
    if isinstance(faces, str):
        found = detect(
            photo,
            detector,
            detector_dir=detector_dir,
            device=device,
            min_face=min_face,
            threshold=threshold,
            effort=effort,
        )
        found = select(
            found,
            shape,
            faces,
            min_face=min_face,
            max_face=max_face,
            max_faces=max_faces,
            order=order,
        )
    else:
        found = list(faces)
    return found, align(photo, found, device=device)


@torch.inference_mode()
def renew(pipeline: OSDFacePipeline, crops: Tensor, **options: Any) -> Tensor:
    """Second step: the crops restored, grey ones still grey; options of `OSDFacePipeline.restore`."""
    restored = pipeline.restore(crops, **options)
    height, width = restored.shape[-2:]
    for face, before in zip(restored.split(1), crops[..., :height, :width].split(1), strict=True):
        face.copy_(keep_grey(face, before))  # one by one: a crowd's crops are large
    return restored


def put_back(
    photo: Photo,
    faces: list[Face],
    crops: Tensor,
    restored: Tensor,
    *,
    upscale: float = 1.0,
    upscale_model: str | Path | None = None,
    feather: float = 0.2,
    paste_mode: PasteMode = "residual",
    in_place: bool = False,
) -> tuple[Photo, Photo]:
    """Third step: the photo with the restored faces, and the mask; see `PhotoResult`.

    Args:
        in_place: see `faces.paste`.
    """
    image, ratio = enlarge(photo, upscale, upscale_model, crops.device)
    return paste(
        image,
        faces,
        restored,
        crops=crops if ratio == (1.0, 1.0) else None,
        feather=feather,
        mode=paste_mode,
        scale=ratio,
        in_place=in_place or image is not photo,
    )


@torch.inference_mode()
def with_identity(faces: list[Face], crops: Tensor, restored: Tensor, weights: str | Path) -> list[Face]:
    """Each face with (1.0, cosine of the restored face to the original): the original is the measure."""
    net = load_identity(weights, crops.device)
    scores = torch.cat(
        [similarity(net, a, b) for a, b in zip(crops.split(16), restored.split(16), strict=True)]
    )
    return [
        dataclasses.replace(f, identity_before_after=(1.0, s))
        for f, s in zip(faces, scores.tolist(), strict=True)
    ]
