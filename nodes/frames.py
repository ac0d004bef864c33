"""A photo or a clip, frame by frame: find faces, follow, choose, cut out, put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..osdface_core.choices import DetectorName, PasteMode
from ..osdface_core.errors import DetectorError, OptionError
from ..osdface_core.faces import align, detect, paste
from ..osdface_core.faces.detect import detection_device, load_detector
from ..osdface_core.faces.face import Face
from ..osdface_core.faces.retinaface import RELEASES, find_local
from ..osdface_core.faces.select import select
from ..osdface_core.faces.track import smooth
from ..osdface_core.options import DetectOptions, parse_faces
from . import host
from .sockets import FaceSet

FrameKind = Literal["photos", "clip"]
DETECT_BYTES = 600 << 20  # activations of RetinaFace for a picture or a batch of patches
Tick = Callable[[int], None]


def no_tick(count: int) -> None:
    """Do nothing: nobody listens."""


def which_faces(selection: str, indices: str) -> str | tuple[()]:
    """Translate two widgets to the core's `faces`: a word, or numbers such as "0,2"; () is none.

    Raises:
        OptionError: `indices` are no numbers.
    """
    if selection != "indices":
        return selection
    if not indices.strip():
        return ()
    try:
        if parse_faces(indices) is not None:
            return indices
    except OptionError:
        pass
    raise OptionError("indices", indices, "face numbers as in the preview, such as 0, 2 or 5-7")


def find_faces(
    frames: Tensor, options: DetectOptions, kind: FrameKind = "photos", tick: Tick = no_tick
) -> FaceSet:
    """Detect in every frame of (B, 3, H, W); in a clip, follow the faces and steady their landmarks.

    Args:
        options: how to look; `order` numbers the faces of photos. Faces above `min_face` stay, whichever are
            chosen later.
        kind: what the batch is; landmarks of unrelated photos must not be averaged.
        tick: called after each frame; may raise to stop.
    """
    detector = load_detector(options.detector, detector_folder(options.detector), torch.device("cpu"))
    managed = _managed(cast(nn.Module, detector))
    found: list[list[Face]] = []
    with host.cancellable():
        for frame in frames:
            found.append(
                detect(
                    frame,
                    detector,
                    device=managed.load(DETECT_BYTES),
                    min_face=options.min_face,
                    threshold=options.threshold,
                    effort=options.effort,
                )
            )
            tick(1)
    height, width = frames.shape[-2:]
    if kind == "clip":
        found = smooth(found, frames)
        numbers = [tuple(face.track or 0 for face in faces) for faces in found]
    else:
        found = [select(faces, (height, width), "all", order=options.order) for faces in found]
        numbers = [tuple(range(len(faces))) for faces in found]
    return FaceSet(tuple(map(tuple, found)), tuple(numbers), height, width)


@lru_cache(maxsize=1)
def _managed(detector: nn.Module) -> host.Managed:
    return host.Managed(detector, detection_device(host.compute_device()))


def detector_folder(detector: DetectorName) -> str:
    """Find the folder that holds RetinaFace's weights.

    Raises:
        DetectorError: not those of `detector`. Prompts come from anybody, so none makes ComfyUI fetch a file.
    """
    folder = host.detector_folder([release.file for release in RELEASES.values()])
    release = RELEASES.get(detector)
    if release is not None and find_local(detector, folder) is None:
        raise DetectorError(
            f"{detector} has no weights here: download {release.url} into models/facedetection, or choose "
            "auto or mtcnn"
        )
    return folder


def choose(faces: FaceSet, options: DetectOptions) -> tuple[FaceSet, list[int]]:
    """Choose faces of every frame; return them and their places among all crops, in the new order."""
    frames, numbers, places, start = [], [], [], 0
    for found, called in zip(faces.frames, faces.numbers, strict=True):
        kept = [
            found.index(face)
            for face in _choose_in_frame(found, called, (faces.height, faces.width), options)
        ]
        frames.append(tuple(found[i] for i in kept))
        numbers.append(tuple(called[i] for i in kept))
        places += [start + i for i in kept]
        start += len(found)
    return replace(faces, frames=tuple(frames), numbers=tuple(numbers)), places


def _choose_in_frame(
    found: tuple[Face, ...], called: tuple[int, ...], shape: tuple[int, int], options: DetectOptions
) -> list[Face]:
    """Choose by the numbers of the preview, which a clip keeps; a number that is absent is no error."""
    which = options.faces
    numbers = parse_faces(which) if isinstance(which, str) else []
    if numbers is not None:
        by_number = dict(zip(called, found, strict=True))
        found, which = tuple(by_number[n] for n in numbers if n in by_number), "all"
    return select(
        found,
        shape,
        which,
        min_face=options.min_face,
        max_face=options.max_face,
        max_faces=options.max_faces,
        order=options.order,
    )


def cut(frames: Tensor, faces: FaceSet, size: int = 512) -> Tensor:
    """Cut aligned crops (N, 3, size, size) out of all frames, in the order of the faces, on their device."""
    device = host.compute_device()
    crops = [
        align(frame, found, size, device=device).to(frames.device)
        for frame, found in zip(frames, faces.frames, strict=True)
        if found
    ]
    return torch.cat(crops) if crops else frames.new_zeros(0, 3, size, size)


def paste_back(
    frames: Tensor, faces: FaceSet, restored: Tensor, feather: float, mode: PasteMode, tick: Tick = no_tick
) -> tuple[Tensor, Tensor]:
    """Blend restored crops into copies of (B, 3, H, W) frames of any size of the same shape.

    Returns:
        frames (B, 3, H, W) and masks (B, 1, H, W); pixels outside the masks keep their exact values.
    Raises:
        ValueError: counts or shapes do not go together.
    """
    if len(frames) != len(faces.frames):
        raise ValueError(
            f"{len(frames)} images but faces of {len(faces.frames)}: give Paste Back the batch that Detect "
            f"Faces got"
        )
    if len(faces) and len(restored) != len(faces):
        raise ValueError(
            f"{len(restored)} crops for {len(faces)} faces: give Paste Back the crops of these faces"
        )
    placed = faces.scale_to(*frames.shape[-2:])
    device = host.compute_device()
    out, masks = frames.clone(), frames.new_zeros(len(frames), 1, *frames.shape[-2:])
    start = 0
    for i, found in enumerate(placed.frames):
        if found:
            part = restored[start : start + len(found)]
            pasted = paste(frames[i], found, part, feather=feather, mode=mode, device=device)
            out[i], masks[i] = cast(tuple[Tensor, Tensor], pasted)
        start += len(found)
        tick(1)
    return out, masks
