"""Restored crops back into the photo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..osdface_core.choices import PasteMode
from ..osdface_core.options import PasteOptions, options_of
from . import draw, host
from .frames import paste_back
from .sockets import FACES, FaceSet
from .widgets import socket, widget, widgets


class OSDFacePasteBack:
    CATEGORY = "OSDFace"
    SEARCH_ALIASES = ["uncrop face", "face composite", "stitch face"]  # noqa: RUF012
    DESCRIPTION = (
        "Blends restored crops into the photo with a soft mask. Give it the photo, or the same photo "
        "enlarged by any upscaler: the geometry scales by itself. Every pixel outside the mask keeps its "
        "exact value."
    )
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("image", "mask")
    OUTPUT_TOOLTIPS = ("The restored photo.", "Where it was changed: 1 fully, 0 not at all.")
    FUNCTION = "paste"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": socket(
                    "IMAGE", "The photo or frames that the faces were found on, in this or a larger size."
                ),
                "faces": socket(FACES, "Faces from Detect Faces or Select Faces."),
                "crops": socket("IMAGE", "Restored crops of these faces, in the same order."),
                **widgets(PasteOptions, "feather"),
            },
            "optional": {"mode": widget(options_of(PasteOptions)["paste_mode"])},
        }

    def paste(
        self, image: Tensor, faces: FaceSet, crops: Tensor, feather: float, mode: PasteMode = "residual"
    ) -> tuple[Tensor, Tensor]:
        pixels = host.from_image(image)
        progress = host.Progress(len(pixels))
        pasted, mask = paste_back(pixels, faces, host.from_crops(crops), feather, mode, progress.step)
        return with_alpha(pasted, image), host.to_mask(mask)


def with_alpha(pixels: Tensor, source: Tensor) -> Tensor:
    """IMAGE from (B, 3, H, W) with the channels beyond RGB that `source` has, at the same size."""
    image = host.to_image(pixels)
    if source.shape[-1] <= 3:
        return image
    extra = draw.resized(source[..., 3:].permute(0, 3, 1, 2).float(), *pixels.shape[-2:])
    extra = extra.permute(0, 2, 3, 1).to(image).expand(len(image), -1, -1, -1)
    return torch.cat((image, extra), dim=-1)
