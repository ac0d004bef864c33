"""Find faces and choose among them."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from ..osdface_core.options import WORDS, DetectOptions, options_of
from . import host
from .frames import FrameKind, choose, cut, find_faces, which_faces
from .helpers import preview_faces
from .sockets import FACES, FaceSet
from .widgets import advanced, choice, chosen, socket, text, widget, widgets

DETECTOR = widget(options_of(DetectOptions)["detector"], " Its weights belong into models/facedetection.")
SELECTION = choice(
    [*WORDS, "indices"],
    "all faces; the largest; the one nearest the centre; or those named in `indices`. Per frame.",
)
INDICES = text(
    "",
    "Numbers as in the preview, like 0, 2, 5-7. Used with selection = indices; in a clip a number is one "
    "person.",
)
FRAMES = choice(
    list(get_args(FrameKind)),
    "What a batch of images is. photos: each image for itself. clip: the frames of a video; faces are "
    "followed and their landmarks steadied, so that nothing jitters.",
)


class OSDFaceDetectFaces:
    CATEGORY = "OSDFace"
    SEARCH_ALIASES = ["face detection", "retinaface", "mtcnn", "face crop"]  # noqa: RUF012
    DESCRIPTION = (
        "Finds faces and cuts them out, upright and 512 pixels wide; faces of all images of a batch come out "
        "together. No face is no error: one black crop comes out, which the other nodes pass on, and Paste "
        "Back returns the photo."
    )
    RETURN_TYPES = (FACES, "IMAGE", "INT", "IMAGE", "STRING")
    RETURN_NAMES = ("faces", "crops", "count", "preview", "json")
    OUTPUT_TOOLTIPS = (
        "Where each face is, for Paste Back, Select Faces and Preview Faces.",
        "Aligned 512-pixel crops, one image per face; one black image if there is none.",
        "Number of faces in all frames.",
        "The photo with a numbered box around every face found; those not selected in grey.",
        "Box, landmarks, score, sharpness and crop transform of each face.",
    )
    FUNCTION = "detect"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": socket("IMAGE", "A photo, a batch of photos, or the frames of a clip."),
                "detector": DETECTOR,
                "selection": SELECTION,
                "indices": INDICES,
                **widgets(DetectOptions, "order", "min_face", "max_face", "max_faces"),
            },
            "optional": {"frames": FRAMES, **advanced(widgets(DetectOptions, "threshold", "effort"))},
        }

    def detect(
        self, image: Tensor, selection: str, indices: str, frames: FrameKind = "photos", **options: Any
    ) -> tuple[FaceSet, Tensor, int, Tensor, str]:
        pixels = host.from_image(image)
        progress = host.Progress(len(pixels))
        looking = chosen(DetectOptions, options | {"selection": which_faces(selection, indices)})
        found = find_faces(pixels, looking, frames, progress.step)
        faces, _ = choose(found, looking)
        crops, preview = cut(pixels, faces), preview_faces(pixels, found, chosen=faces)
        return faces, host.to_crops(crops), len(faces), host.to_image(preview), faces.to_json()


class OSDFaceSelectFaces:
    CATEGORY = "OSDFace"
    DESCRIPTION = (
        "Keeps some of the detected faces and their crops: by number, size, place or count. The rest stay as "
        "they are."
    )
    RETURN_TYPES = (FACES, "IMAGE", "INT")
    RETURN_NAMES = ("faces", "crops", "count")
    OUTPUT_TOOLTIPS = ("The chosen faces.", "Their crops, in the same order.", "How many.")
    FUNCTION = "select"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "faces": socket(FACES, "Faces from Detect Faces."),
                "crops": socket("IMAGE", "The crops that came with them."),
                "selection": SELECTION,
                "indices": INDICES,
                **widgets(DetectOptions, "order", "min_face", "max_face", "max_faces"),
            }
        }

    def select(
        self, faces: FaceSet, crops: Tensor, selection: str, indices: str, **options: Any
    ) -> tuple[FaceSet, Tensor, int]:
        pixels = host.from_crops(crops)
        if len(pixels) != len(faces):
            raise ValueError(
                f"{len(pixels)} crops for {len(faces)} faces: connect both from the same Detect Faces"
            )
        looking = chosen(DetectOptions, options | {"selection": which_faces(selection, indices)})
        kept, places = choose(faces, looking)
        return kept, host.to_crops(pixels[places]), len(kept)
