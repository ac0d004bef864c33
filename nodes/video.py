"""A video as a stream, from file to file: a film needs no more memory than a clip."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from ..osdface_core.errors import OptionError
from ..osdface_core.options import DetectOptions, LoadOptions, PasteOptions, RestoreOptions, VideoOptions
from ..osdface_core.video import restore_stream
from ..osdface_core.video.formats import WRITTEN
from ..osdface_core.video.restore import VideoPlan
from . import host
from .detect import DETECTOR
from .frames import detector_folder, which_faces
from .load import BASE_TIP, CHECKPOINT_TIP
from .photo import ModelHolder, Models
from .widgets import advanced, choice, chosen, socket, text, widgets


class OSDFaceRestoreVideo(ModelHolder):
    CATEGORY = "OSDFace"
    SEARCH_ALIASES = ["face restore video", "video face enhance", "deblur video", "old film"]  # noqa: RUF012
    DESCRIPTION = (
        "Restores the faces of a video of any length, as a stream: its frames are never in memory together. "
        "Faces are followed and steadied with the frames' own times; sound, subtitles, times, rotation and "
        "colour description stay."
    )
    RETURN_TYPES = ("VIDEO", "INT")
    RETURN_NAMES = ("video", "count")
    OUTPUT_TOOLTIPS = (
        "The restored video, a file in ComfyUI's temp folder: Save Video copies it without coding it again.",
        "Number of restored faces in all frames.",
    )
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "video": socket("VIDEO", "A video from Load Video, or from other nodes."),
                "checkpoint": choice(host.checkpoint_names(), CHECKPOINT_TIP),
                "base": choice(host.base_names(), BASE_TIP),
                "detector": DETECTOR,
                "selection": choice(
                    ["all", "largest", "center", "indices"],
                    "all faces; the largest; the one nearest the centre; or those named in `indices`. In "
                    "each frame by itself.",
                ),
                **widgets(DetectOptions, "min_face"),
                **widgets(RestoreOptions, "strength", "color_fix"),
            },
            "optional": {
                "indices": text("", "Numbers from 0 in the chosen order, like 0, 2, 5-7."),
                **advanced(widgets(DetectOptions, "order", "max_face", "max_faces", "threshold")),
                **advanced(widgets(PasteOptions, "feather", "paste_mode")),
                **widgets(PasteOptions, "upscale"),
                **advanced(widgets(RestoreOptions, "timestep", "batch_size", "fidelity")),
                **advanced(widgets(LoadOptions, "lora_scale", "dtype")),
                **advanced(widgets(VideoOptions, "video_codec", "crf")),
            },
        }

    @classmethod
    def IS_CHANGED(cls, checkpoint: str | None = None, base: str | None = None, **_: Any) -> str | float:  # noqa: N802
        return host.changed(checkpoint, base)

    def restore(
        self, video: Any, checkpoint: str, base: str, selection: str, indices: str = "", **options: Any
    ) -> tuple[Any, int]:
        faces = which_faces(selection, indices)
        if not isinstance(faces, str):
            raise OptionError("indices", indices, "face numbers such as 0, 2 or 5-7")
        options |= {"selection": faces, "detector_dir": detector_folder(options["detector"])}
        plan = VideoPlan(
            chosen(DetectOptions, options), chosen(RestoreOptions, options),
            chosen(PasteOptions, options), chosen(VideoOptions, options),
        )  # fmt: skip
        loading = chosen(LoadOptions, options)
        files = host.checkpoint_path(checkpoint), host.base_path(base), loading.lora_scale, loading.dtype
        bar, seen = host.Progress(1), list[Tensor]()

        def run(crops: Tensor) -> Tensor:
            if not plan.restore.strength:  # no model is loaded for nothing
                return crops
            restored = self._load(*files).run(
                crops, plan.restore, loading.lora_scale, lambda *_: host.check_interrupt()
            )
            seen[:] = restored[-1:]
            return restored

        def progress(done: int, total: int) -> None:
            bar.show(done, total, seen.pop() if seen else None)

        with host.video_file(video) as source, host.cancellable():
            # The same job has the same name: after Cancel it goes on where it was.
            model = repr((Models.key_of(*files[:2], loading.dtype), loading.lora_scale))
            key = repr((source, host.stamp(source), plan, model))
            name = f"osdface_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
            suffix = Path(source).suffix.lower()
            target = host.temp_folder() / f"{name}{suffix if suffix in WRITTEN else '.mkv'}"
            result = restore_stream(
                source, target, run, host.compute_device(), plan, model=model, progress=progress
            )
        for note in result.notes:
            host.log.warning("%s: %s", source, note)
        return host.video_of(target), result.faces
