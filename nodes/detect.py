"""Find faces and choose among them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import host
from .frames import DETECTORS, FRAMES, ORDERS, SELECTIONS, Choice, choose, cut, find_faces
from .helpers import preview_faces
from .sockets import FACES, FaceSet
from .widgets import choice, decimal, integer, socket, text

SELECTION_TIP = "all faces; the largest; the one nearest the centre; or those named in `indices`. Per frame."
INDICES_TIP = (
    "Numbers as in the preview, like 0, 2, 5-7. Used with selection = indices; in a clip a number is one "
    "person."
)
ORDER_TIP = "Order of the faces, which also decides who stays when max_faces is set."
MIN_TIP = "Leave faces smaller than this alone, in pixels of the longer side of the box. 0: no limit."
MAX_TIP = "Leave faces larger than this alone, in pixels. 0: no limit."
COUNT_TIP = "At most this many faces per frame. 0: no limit."
DETECTOR_TIP = (
    "auto: RetinaFace if its weights are in models/facedetection, else MTCNN, which needs no download. The "
    "named RetinaFace models are fetched once if they are missing."
)
FRAMES_TIP = (
    "What a batch of images is. clip: faces are followed and their landmarks steadied, so that nothing "
    "jitters. photos: each image for itself. auto: a clip if neighbouring images look alike."
)
EFFORT_TIP = (
    "auto: look again, turned or in tiles, where the first look leaves doubts (tilted faces, crowds). fast: "
    "look once. thorough: do all of it always."
)


class OSDFaceDetectFaces:
    """Faces of a photo or clip."""

    CATEGORY = "OSDFace"
    DESCRIPTION = (
        "Finds faces and cuts them out, upright and 512 pixels wide. A batch of images is a clip: faces of "
        "all frames come out together. No face is no error: the crops are empty and Paste Back returns the "
        "photo."
    )
    RETURN_TYPES = (FACES, "IMAGE", "INT", "IMAGE", "STRING")
    RETURN_NAMES = ("faces", "crops", "count", "preview", "json")
    OUTPUT_TOOLTIPS = (
        "Where each face is, for Paste Back, Select Faces and Preview Faces.",
        "Aligned 512-pixel crops, one image per face.",
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
                "detector": choice(DETECTORS, DETECTOR_TIP),
                "selection": choice(SELECTIONS, SELECTION_TIP),
                "indices": text("", INDICES_TIP),
                "order": choice(ORDERS, ORDER_TIP),
                "min_face": integer(0, 0, 8192, MIN_TIP),
                "max_face": integer(0, 0, 8192, MAX_TIP),
                "max_faces": integer(0, 0, 1000, COUNT_TIP),
            },
            "optional": {
                "frames": choice(FRAMES, FRAMES_TIP),
                "threshold": decimal(
                    0.9, 0.0, 1.0, "Least certainty of the detector; lower finds more, also wrong ones.", 0.05
                ),
                "effort": choice(["auto", "fast", "thorough"], EFFORT_TIP),
            },
        }

    def detect(
        self,
        image: Tensor,
        detector: str,
        selection: str,
        indices: str,
        order: str,
        min_face: int,
        max_face: int,
        max_faces: int,
        frames: str = "auto",
        threshold: float = 0.9,
        effort: str = "auto",
    ) -> tuple[FaceSet, Tensor, int, Tensor, str]:
        pixels = host.from_image(image)
        progress = host.Progress(len(pixels))
        look = {"threshold": threshold, "effort": effort}
        found = find_faces(pixels, detector, min_face, frames, order, progress.step, **look)
        faces, _ = choose(found, Choice(selection, indices, order, min_face, max_face, max_faces))
        crops, preview = cut(pixels, faces), preview_faces(pixels, found, chosen=faces)
        return faces, host.to_image(crops), len(faces), host.to_image(preview), faces.to_json()


class OSDFaceSelectFaces:
    """Some of the faces."""

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
                "selection": choice(SELECTIONS, SELECTION_TIP),
                "indices": text("", INDICES_TIP),
                "order": choice(ORDERS, ORDER_TIP),
                "min_face": integer(0, 0, 8192, MIN_TIP),
                "max_face": integer(0, 0, 8192, MAX_TIP),
                "max_faces": integer(0, 0, 1000, COUNT_TIP),
            }
        }

    def select(
        self,
        faces: FaceSet,
        crops: Tensor,
        selection: str,
        indices: str,
        order: str,
        min_face: int,
        max_face: int,
        max_faces: int,
    ) -> tuple[FaceSet, Tensor, int]:
        if len(crops) != len(faces):
            raise ValueError(
                f"{len(crops)} crops for {len(faces)} faces: connect both from the same Detect Faces"
            )
        kept, places = choose(faces, Choice(selection, indices, order, min_face, max_face, max_faces))
        return kept, crops[places].clone(), len(kept)
