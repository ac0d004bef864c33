"""Small nodes for what a graph needs around the restoration: look, blend, compare."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import draw, host
from .paste import with_alpha
from .sockets import FACES, FaceSet
from .widgets import choice, decimal, integer, socket, switch, text


class OSDFacePreviewFaces:
    CATEGORY = "OSDFace"
    DESCRIPTION = "Draws each face's box and number on the photo: the numbers that Select Faces understands."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The photo or frames with boxes. A picture to look at; the input is not changed.",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": socket(
                    "IMAGE", "The photo that the faces were found on (any size of the same shape)."
                ),
                "faces": socket(FACES, "Faces from Detect Faces or Select Faces."),
            },
            "optional": {
                "details": switch(
                    False, "Write detection score, size in pixels and identity beside the number."
                ),
            },
        }

    def draw(self, image: Tensor, faces: FaceSet, details: bool = False) -> tuple[Tensor]:
        return (host.to_image(preview_faces(host.from_image(image), faces, details)),)


class OSDFaceBlendByMask:
    CATEGORY = "OSDFace"
    DESCRIPTION = (
        "Keeps the restoration only where a mask is white. Paint a mask to protect a person or a hand, or "
        "use the mask of Paste Back. Where the mask is black the original's pixels come through bit for bit."
    )
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("original + mask x strength x (restored - original).",)
    FUNCTION = "blend"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "original": socket("IMAGE", "The untouched photo; enlarged to the restored one if smaller."),
                "restored": socket("IMAGE", "The restored photo."),
                "mask": socket(
                    "MASK", "White: take the restored pixel. One mask, or one per frame; any size."
                ),
                "strength": decimal(1.0, 0.0, 1.0, "How much of the restoration to keep inside the mask."),
            },
            "optional": {
                "invert": switch(False, "Use the mask the other way round: white protects the original.")
            },
        }

    def blend(
        self, original: Tensor, restored: Tensor, mask: Tensor, strength: float, invert: bool = False
    ) -> tuple[Tensor]:
        after = host.from_image(restored)
        before = match(host.from_image(original).to(after.device), after)
        weight = fit_mask(1.0 - mask if invert else mask, after) * strength
        # lerp of equal weights 0 would still round; the original's bits are kept by choosing them.
        mixed = torch.where(weight == 0, before, torch.lerp(before, after, weight))
        return (with_alpha(mixed, restored if restored.shape[-1] > 3 else original),)


class OSDFaceBeforeAfter:
    CATEGORY = "OSDFace"
    SEARCH_ALIASES = ["compare images", "side by side", "split view"]  # noqa: RUF012
    DESCRIPTION = (
        "Puts the photo before and after restoration into one picture: side by side, stacked, or split."
    )
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The comparison, one picture per frame.",)
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        layouts = ["side_by_side", "stacked", "split"]
        return {
            "required": {
                "before": socket("IMAGE", "The photo before; enlarged to the other's size if it is smaller."),
                "after": socket("IMAGE", "The restored photo."),
                "layout": choice(layouts, "split: one picture, left part before, right part after."),
                "position": decimal(0.5, 0.0, 1.0, "Where a split picture divides, from the left.", 0.05),
                "gap": integer(
                    8, 0, 128, "White gap between the pictures, or width of the dividing line, in pixels."
                ),
                "labels": switch(True, "Write the captions onto the pictures."),
            },
            "optional": {
                "before_label": text("before", "Caption of the first picture."),
                "after_label": text("after", "Caption of the second picture."),
            },
        }

    def compare(
        self,
        before: Tensor,
        after: Tensor,
        layout: str,
        position: float,
        gap: int,
        labels: bool,
        before_label: str = "before",
        after_label: str = "after",
    ) -> tuple[Tensor]:
        second = with_opacity(after, before)
        first = match(with_opacity(before, after).to(second.device), second)
        captions = ("", "") if layout == "split" or not labels else (before_label, after_label)
        pairs = (
            draw.compare(
                draw.with_label(a, captions[0]), draw.with_label(b, captions[1]), layout, position, gap
            )
            for a, b in zip(first, second, strict=True)
        )
        pictures = list(pairs)
        return (host.to_image(torch.stack(pictures) if pictures else second),)


def preview_faces(
    frames: Tensor, faces: FaceSet, details: bool = False, chosen: FaceSet | None = None
) -> Tensor:
    """Draw numbered boxes on frames (B, 3, H, W), grey for faces not among `chosen`; a new tensor."""
    faces = faces.scale_to(*frames.shape[-2:])
    drawn = []
    for i, (frame, found) in enumerate(zip(frames, faces.frames, strict=True)):
        numbers = faces.numbers[i]
        kept = numbers if chosen is None else chosen.numbers[i]
        captions = [caption(face, n, details) for face, n in zip(found, numbers, strict=True)]
        colours = [n if n in kept else None for n in numbers]
        drawn.append(draw.numbered_boxes(frame, [face.box for face in found], captions, colours))
    return torch.stack(drawn) if drawn else frames


def caption(face: Any, shown: int, details: bool) -> str:
    if not details:
        return str(shown)
    parts = [str(shown), f"{face.score:.2f}", f"{face.size:.0f}px"]
    if face.identity_before_after is not None:
        parts.append(f"id {face.identity_before_after[1]:.2f}")
    return " ".join(parts)


def with_opacity(image: Tensor, other: Tensor) -> Tensor:
    """Convert IMAGE to (B, 3 or 4, H, W): 4, opaque by default, if one of both pictures has alpha."""
    pixels = host.from_image(image)
    if image.shape[-1] == 4:
        return torch.cat((pixels, image[..., 3:].permute(0, 3, 1, 2).float()), dim=1)
    return F.pad(pixels, (0, 0, 0, 0, 0, 1), value=1.0) if other.shape[-1] == 4 else pixels


def match(images: Tensor, like: Tensor) -> Tensor:
    """Bring `images` to the size of `like`, repeated to its number of frames.

    Raises:
        ValueError: shapes or numbers of frames do not go together.
    """
    ratio = images.shape[-1] * like.shape[-2] / max(1, images.shape[-2] * like.shape[-1])
    if abs(ratio - 1.0) > 0.03:
        sizes = [f"{t.shape[-1]}x{t.shape[-2]}" for t in (images, like)]
        raise ValueError(
            f"the two images differ in shape ({sizes[0]} and {sizes[1]}): give the same photo twice"
        )
    if images.shape[0] not in (1, like.shape[0]):
        raise ValueError(
            f"{images.shape[0]} and {like.shape[0]} frames do not go together: give as many of both"
        )
    return draw.resized(images, *like.shape[-2:]).expand(like.shape[0], -1, -1, -1)


def fit_mask(mask: Tensor, like: Tensor) -> Tensor:
    """Bring a MASK (B, H, W) or (H, W) to (B, 1, H, W) at the size and number of `like`."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).to(like.device, torch.float32).clamp(0.0, 1.0)
    if mask.shape[-2:] != like.shape[-2:]:
        mask = F.interpolate(mask, size=like.shape[-2:], mode="bilinear", align_corners=False)
    if mask.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"{mask.shape[0]} masks for {like.shape[0]} images: give one mask, or one per image")
    return mask.expand(like.shape[0], -1, -1, -1)
