"""Two of the steps that photos and the frames of videos share: restore crops, and paste them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .color import keep_grey
from .errors import ImageError
from .faces.face import Face
from .faces.paste import paste
from .options import PasteOptions, RestoreOptions
from .photo_array import PhotoArray, Pixels
from .pipeline import FacePipeline, OnProgress


@torch.inference_mode()
def restore_crops(
    restorer: FacePipeline,
    crops: Tensor,
    options: RestoreOptions,
    progress: OnProgress | None = None,
    prompt: Tensor | None = None,
) -> Tensor:
    """Restore aligned crops, grey ones to exactly grey: `restore_photo`'s second step. ImageError: NaN."""
    restored = restorer.restore(crops, **vars(options), progress=progress, prompt=prompt)
    if restored.isnan().any() and not crops.isnan().any():
        raise ImageError("the model gives no picture (NaN): try `dtype` fp32; else its file is damaged")
    height, width = restored.shape[-2:]
    for face, before in zip(restored.split(1), crops[..., :height, :width].split(1), strict=True):
        face.copy_(keep_grey(face, before))  # one by one: a crowd's crops are large
    return restored


def paste_back(
    photo: Pixels | PhotoArray,
    faces: Sequence[Face],
    crops: Tensor,
    restored: Tensor,
    options: PasteOptions,
    *,
    in_place: bool = False,
) -> tuple[Pixels, Tensor | np.ndarray]:
    """Enlarge the photo and paste the restored faces: the third step of `restore_photo`.

    Args:
        in_place: see `faces.paste`.
    Returns:
        the photo and the mask, see `PhotoResult`.
    """
    from .upscale import enlarge

    photo = PhotoArray.of(photo)
    image, ratio = enlarge(photo, options.upscale, options.upscale_model, crops.device)
    return paste(
        image,
        faces,
        restored,
        crops=crops if ratio == (1.0, 1.0) else None,
        feather=options.feather,
        mode=options.paste_mode,
        scale=ratio,
        in_place=in_place or image is not photo,
    )
