"""Everything in one node: photo or clip in, restored photo or clip out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..osdface_core.choices import Dtype
from ..osdface_core.options import DetectOptions, LoadOptions, PasteOptions, RestoreOptions
from ..osdface_core.photo_array import PhotoArray
from ..osdface_core.upscale import enlarge
from . import host
from .detect import DETECTOR, FRAMES, INDICES, SELECTION
from .frames import FrameKind, choose, cut, find_faces, paste_back, which_faces
from .identity import UNKNOWN, Scorer, check_guard, guard, load_scorer, scores
from .load import BASE_TIP, CHECKPOINT_TIP
from .models import Embedder, Restorer
from .paste import with_alpha
from .restore import GUARD_TIP
from .sockets import FaceSet
from .widgets import advanced, choice, chosen, decimal, socket, widgets


@dataclass(frozen=True, eq=False)
class Models:
    """Both sides of one checkpoint, and what they were loaded from."""

    key: tuple[Any, ...]
    embedder: Embedder
    restorer: Restorer

    @staticmethod
    def key_of(source: str, base: str | None, dtype: Dtype) -> tuple[Any, ...]:
        """Tell models apart; a replaced file is another model."""
        return (source, base, host.stamp(source, base), dtype)

    @classmethod
    def load(cls, source: str, base: str | None, lora: float, dtype: Dtype) -> Models:
        """Load from files, or take what another node holds already."""
        held = _HELD.get(cls.key_of(source, base, dtype))
        if held is not None and held.restorer.takes(lora):
            return held
        restorer, loaded = Restorer.load(source, base, lora, dtype)
        key = cls.key_of(source, base, dtype)
        _HELD[key] = models = cls(key, Embedder(loaded.config, loaded.prompt_encoder), restorer)
        return models

    def serves(self, source: str, base: str | None, lora: float, dtype: Dtype) -> bool:
        """Tell whether these are the models of that call of `load`."""
        return self.key == self.key_of(source, base, dtype) and self.restorer.takes(lora)

    def run(self, crops: Tensor, options: RestoreOptions, lora: float, step: Callable[..., None]) -> Tensor:
        """Restore (N, 3, 512, 512) crops with the LoRA at a strength.

        Args:
            step: is told twice of each, with a result the second time.
        """
        prompts = self.embedder.encode(crops, step)
        return self.restorer.at(lora).restore(
            crops, prompts, options, tick=lambda count, batch: step(count, batch[-1])
        )


# Several nodes of one graph share their models; they go when the last node that holds them does.
_HELD: WeakValueDictionary[tuple[Any, ...], Models] = WeakValueDictionary()


class ModelHolder:
    """A node that keeps the models of its last run: a cache of loaded files, not of anything about a run."""

    def __init__(self) -> None:
        self._models: Models | None = None

    def _load(self, *wanted: Any) -> Models:
        """Load what `Models.load` is asked for; what this node held goes first, so that memory holds one."""
        if self._models is not None and not self._models.serves(*wanted):
            self._models = None
        self._models = Models.load(*wanted)
        return self._models


class OSDFaceRestorePhoto(ModelHolder):
    CATEGORY = "OSDFace"
    SEARCH_ALIASES = ["face restore", "gfpgan", "codeformer", "face enhance", "deblur face", "old photo"]  # noqa: RUF012
    DESCRIPTION = (
        "Restores the faces of a photo or clip: finds them, restores all of them in one diffusion step, and "
        "blends them back. Pixels outside the faces keep their exact values; a photo without faces passes "
        "through."
    )
    RETURN_TYPES = ("IMAGE", "MASK", "STRING", "IMAGE", "FLOAT", "INT")
    RETURN_NAMES = ("image", "mask", "json", "crops", "identity", "count")
    OUTPUT_IS_LIST = (False, False, False, False, True, False)
    OUTPUT_TOOLTIPS = (
        "The restored photo or frames.",
        "Where it was changed: 1 fully, 0 not at all.",
        "Box, landmarks, scores and crop transform of each face.",
        "Restored 512-pixel crops, one per face; one black image if there is none.",
        "How much each face still is the same person (cosine), one entry per face; nan without "
        "mobilefacenet.pt in models/osdface, and one nan without faces.",
        "Number of restored faces.",
    )
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": socket("IMAGE", "A photo, a batch of photos, or the frames of a clip."),
                "checkpoint": choice(host.checkpoint_names(), CHECKPOINT_TIP),
                "base": choice(host.base_names(), BASE_TIP),
                "detector": DETECTOR,
                "selection": SELECTION,
                **widgets(DetectOptions, "min_face"),
                **widgets(RestoreOptions, "strength", "color_fix"),
            },
            "optional": {
                "indices": INDICES,
                **advanced(widgets(DetectOptions, "order", "max_faces")),
                **advanced(widgets(PasteOptions, "feather", "paste_mode")),
                **widgets(PasteOptions, "upscale"),
                **advanced(widgets(RestoreOptions, "timestep")),
                **advanced(widgets(LoadOptions, "lora_scale")),
                **advanced({"identity_guard": decimal(0.0, 0.0, 1.0, GUARD_TIP, 0.05)}),
                "frames": FRAMES,
                **advanced(widgets(LoadOptions, "dtype")),
                **advanced(widgets(RestoreOptions, "batch_size", "fidelity")),
            },
        }

    @classmethod
    def IS_CHANGED(cls, checkpoint: str | None = None, base: str | None = None, **_: Any) -> str | float:  # noqa: N802
        return host.changed(checkpoint, base)

    @classmethod
    def VALIDATE_INPUTS(cls, identity_guard: float | None = None) -> bool | str:  # noqa: N802
        return check_guard(identity_guard)

    def restore(
        self,
        image: Tensor,
        checkpoint: str,
        base: str,
        selection: str,
        indices: str = "",
        identity_guard: float = 0.0,
        frames: FrameKind = "photos",
        **options: Any,
    ) -> tuple[Tensor, Tensor, str, Tensor, list[float], int]:
        pixels = host.from_image(image)
        looking = chosen(DetectOptions, options | {"selection": which_faces(selection, indices)})
        how, pasting = chosen(RestoreOptions, options), chosen(PasteOptions, options)
        finding = host.Progress(len(pixels))
        faces, _ = choose(find_faces(pixels, looking, frames, finding.step), looking)
        photo = enlarged(pixels, pasting.upscale)
        crops = cut(pixels, faces)
        restored, identity = crops, [1.0] * len(faces) or [UNKNOWN]
        if len(faces) and how.strength:  # else no model is loaded for nothing
            scorer = load_scorer(required=identity_guard > 0)
            files = host.checkpoint_path(checkpoint), host.base_path(base)
            loading = chosen(LoadOptions, options)
            models = self._load(*files, loading.lora_scale, loading.dtype)
            restored = models.run(crops, how, loading.lora_scale, host.Progress(2 * len(crops)).step)
            restored, faces, identity = check_identity(scorer, crops, restored, faces, identity_guard)
        pasted, mask = paste_back(
            photo, faces, restored, pasting.feather, pasting.paste_mode, lambda count: host.check_interrupt()
        )
        result = with_alpha(pasted, image), host.to_mask(mask)
        return *result, faces.to_json(), host.to_crops(restored), identity, len(faces)


def check_identity(
    scorer: Scorer | None, crops: Tensor, restored: Tensor, faces: FaceSet, threshold: float
) -> tuple[Tensor, FaceSet, list[float]]:
    """Guard and score where the recognition network is at hand; unknown scores where it is not."""
    if scorer is None:
        return restored, faces, [UNKNOWN] * len(faces)
    if threshold > 0:
        restored, _ = guard(scorer, crops, restored, threshold)
    pairs = scores(scorer, crops, restored)
    return restored, faces.with_identity(pairs), [after for _, after in pairs]


def enlarged(frames: Tensor, factor: float) -> Tensor:
    """Enlarge frames (B, 3, H, W) by `factor` (Lanczos); the same tensor at factor 1."""
    if factor == 1.0 or not len(frames):
        return frames
    larger = [enlarge(PhotoArray.of(frame), factor, None, frame.device)[0].native() for frame in frames]
    return torch.stack(cast(list[Tensor], larger))
