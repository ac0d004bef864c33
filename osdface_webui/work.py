# pyright: reportMissingImports=false
"""Restore a picture as the web UI wants it: on its device, with its buttons, and without an exception."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch
from modules import devices, errors, shared

import osdface_core
from osdface_core.devices import FACE_BYTES, is_out_of_memory
from osdface_core.interruption import checked
from osdface_core.options import in_words_of

from .choices import base_path, model_path

MEMORY = FACE_BYTES["kl"] + (2 << 30)
"""Asked of the host before a model is loaded [bytes]: the released model in half precision and one face."""


class Stopped(Exception):  # noqa: N818
    """The user pressed Interrupt or Skip."""


class Outcome(NamedTuple):
    """A picture, restored or as it was, and why.

    Attributes:
        image: RGB (H, W, 3) uint8.
        faces: the faces that were restored.
        error: one line if the picture is as it was, else empty.
    """

    image: np.ndarray
    faces: list[Any]
    error: str = ""


class LastPipeline:
    """The last pipeline that was used; the web UI's "move to RAM" sends it there."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.pipeline: Any = None

    def get(self, model: str, base: str) -> Any:
        """Load the pipeline for these choices, or bring it back. Raises CheckpointError."""
        device = torch.device(devices.get_device_for("osdface"))
        dtype = "fp32" if getattr(shared.cmd_opts, "no_half", False) else "auto"
        key = (model, base, dtype)
        if key != self.key:
            self.drop()
            make_room(device)
            self.pipeline = osdface_core.OSDFacePipeline.from_pretrained(
                model_path(model), base=base_path(base), device=device, dtype=dtype
            )
            self.key = key
        elif self.pipeline.device.type != device.type:
            make_room(device)
            self.pipeline.to(device)
        return self.pipeline

    def rest(self) -> None:
        """Move the weights to RAM."""
        if self.pipeline is not None and self.pipeline.device.type != "cpu":
            self.pipeline.to("cpu")
        devices.torch_gc()

    def drop(self) -> None:
        """Give all of the memory back."""
        self.key, self.pipeline = (), None
        devices.torch_gc()


last = LastPipeline()


def make_room(device: torch.device) -> None:
    """Ask Forge to move its models out of the way; Automatic1111 has nobody to ask."""
    with contextlib.suppress(ImportError):
        from backend import memory_management

        if device.type != "cpu":
            memory_management.free_memory(MEMORY, device)


def stopped() -> bool:
    """Tell whether the user pressed Interrupt or Skip, or wants no further picture."""
    state = shared.state
    return bool(state.interrupted or state.skipped)


def _check() -> None:
    if stopped():
        raise Stopped


def _progress(done: int, total: int) -> None:
    shared.state.sampling_step, shared.state.sampling_steps = done, total
    shared.state.textinfo = f"OSDFace: {done} of {total} faces"


def restore(image: np.ndarray, model: str, base: str, options: Mapping[str, Any]) -> Outcome:
    """Restore RGB (H, W, 3) uint8.

    Whatever goes wrong, the picture comes back as it was, with a line in the console, in the browser and in
    the outcome, and the next picture is tried.
    """
    if stopped():
        return Outcome(image, [], "stopped")
    shared.state.textinfo = "OSDFace: looking for faces"
    try:
        with checked(_check):
            pipeline = last.get(model, base)
            result = pipeline.restore_photo(image, progress=_progress, **options)
        return Outcome(np.asarray(result.image), result.faces)
    except Stopped:
        return Outcome(image, [], "stopped")
    except Exception as error:  # the web UI would drop the other pictures of the folder
        return Outcome(image, [], _report(error))
    finally:
        if shared.opts.data.get("face_restoration_unload", False):
            last.rest()


def _report(error: Exception) -> str:
    known = isinstance(error, osdface_core.OSDFaceError)
    message = in_words_of("webui", (str(error).strip().splitlines() or [type(error).__name__])[0])
    if is_out_of_memory(error):
        last.drop()
        message = "out of memory: this picture is left as it was; try a smaller one, or restore fewer faces"
        known = True
    errors.report(f"OSDFace: {message}", exc_info=not known)
    with contextlib.suppress(Exception):  # older gradio has no Warning, and outside of a request it may fail
        gr.Warning(f"OSDFace: {message}")
    return message
