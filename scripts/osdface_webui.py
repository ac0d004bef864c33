# pyright: reportMissingImports=false
"""Automatic1111 and Forge: OSDFace in the Extras tab and among the face restorers, thin on the core.

The web UI puts the extension's folder on `sys.path` while it loads this file, which is how the core is found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from modules import devices, errors, face_restoration, paths, script_callbacks, scripts_postprocessing, shared
from modules.ui_components import InputAccordion
from PIL import Image

import osdface_core
from osdface_core.choices import ColorFix
from osdface_core.options import (
    WORDS,
    DetectOptions,
    LoadOptions,
    Option,
    RestoreOptions,
    in_words_of,
    options_of,
)
from osdface_core.released import is_released_folder

NAME = "OSDFace"
MODELS = Path(paths.models_path) / NAME
NO_BASE = "none"
TABLE = {
    name: option
    for options in (LoadOptions, DetectOptions, RestoreOptions)
    for name, option in options_of(options).items()
}


def model_names() -> list[str]:
    """List `mini`, checkpoints in models/OSDFace, and folders there with the three released files."""
    files = sorted(p.name for p in MODELS.glob("*.safetensors")) if MODELS.is_dir() else []
    folders = sorted(p.name for p in MODELS.iterdir() if is_released_folder(p)) if MODELS.is_dir() else []
    return ["mini", *files, *folders]


def base_names() -> list[str]:
    """List the web UI's Stable Diffusion checkpoints that are .safetensors; a LoRA needs a 2.1-base."""
    from modules import sd_models

    return [
        NO_BASE,
        *sorted(n for n, c in sd_models.checkpoints_list.items() if c.filename.endswith(".safetensors")),
    ]


def base_path(name: str) -> str | None:
    """Find the file behind a choice of `base_names`."""
    from modules import sd_models

    info = sd_models.checkpoints_list.get(name)
    return info.filename if info else None


class LastPipeline:
    """The last pipeline that was used, kept until another one is asked for."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.pipeline: Any = None

    def get(self, model: str, base: str) -> Any:
        """Load the pipeline for these choices. Raises CheckpointError."""
        dtype = "fp32" if getattr(shared.cmd_opts, "no_half", False) else "auto"
        key = (model, base, dtype)
        if key != self.key:
            self.release()
            source = "mini" if model == "mini" else MODELS / model
            self.pipeline = osdface_core.OSDFacePipeline.from_pretrained(
                source, base=base_path(base), device=devices.get_optimal_device(), dtype=dtype
            )
            self.key = key
        return self.pipeline

    def release(self) -> None:
        """Give the memory back."""
        self.key, self.pipeline = (), None
        devices.torch_gc()


last = LastPipeline()


def restore(
    image: np.ndarray,
    model: str,
    base: str,
    strength: float,
    color_fix: ColorFix,
    *,
    fidelity: float = RestoreOptions.fidelity,
    faces: str = DetectOptions.faces,
    min_face: float = DetectOptions.min_face,
) -> tuple[np.ndarray, int]:
    """Restore RGB (H, W, 3) uint8; return it and the number of faces. Errors leave the image as it was."""
    try:
        result = last.get(model, base).restore_photo(
            image, strength=strength, color_fix=color_fix, fidelity=fidelity, faces=faces, min_face=min_face
        )
        return np.asarray(result.image), len(result.faces)
    except osdface_core.OSDFaceError as error:
        errors.report(f"OSDFace: {in_words_of('webui', str(error))}")
        return image, 0
    finally:
        if shared.opts.data.get("face_restoration_unload", False):
            last.release()


class OSDFaceRestoration(face_restoration.FaceRestoration):
    """The choice "OSDFace" of Settings > Face restoration, of img2img's checkbox and of the API."""

    def name(self) -> str:
        return NAME

    def restore(self, np_image: np.ndarray) -> np.ndarray:
        """Restore RGB uint8 (H, W, 3), one picture as the sampler made it."""
        chosen = shared.opts.data
        return restore(
            np_image,
            chosen.get("osdface_model", LoadOptions.source),
            chosen.get("osdface_base", NO_BASE),
            chosen.get("osdface_strength", RestoreOptions.strength),
            chosen.get("osdface_color_fix", RestoreOptions.color_fix),
        )[0]


def dial(option: Option, **changed: Any) -> dict[str, Any]:
    """Collect what a slider of an option is made with."""
    return {
        "minimum": option.low, "maximum": option.high, "step": option.step, "value": option.default,
        "label": option.called("webui"), "info": option.help, **changed,
    }  # fmt: skip


def menu(option: Option, choices: list[str] | None = None, **changed: Any) -> dict[str, Any]:
    """Collect what a drop-down of an option is made with."""
    return {
        "choices": choices or list(option.choices), "value": option.default,
        "label": option.called("webui"), "info": option.help, **changed,
    }  # fmt: skip


class ScriptPostprocessingOSDFace(scripts_postprocessing.ScriptPostprocessing):
    """The panel of the Extras tab; runs after upscaling, so that small faces have room."""

    name = NAME
    order = 3100

    def ui(self) -> dict[str, Any]:
        with InputAccordion(False, label=NAME, elem_id="extras_osdface") as enable:
            with gr.Row():
                visibility = gr.Slider(**dial(TABLE["strength"], label="Visibility", step=0.01))
                min_face = gr.Slider(**dial(TABLE["min_face"], maximum=512, step=4))
            with gr.Row():
                model = gr.Dropdown(**menu(TABLE["source"], model_names()))
                base = gr.Dropdown(**menu(TABLE["base"], base_names(), value=NO_BASE))
            with gr.Row():
                faces = gr.Dropdown(**menu(TABLE["faces"], list(WORDS)))
                color_fix = gr.Dropdown(**menu(TABLE["color_fix"]))
                fidelity = gr.Slider(**dial(TABLE["fidelity"]))
        return {
            "enable": enable,
            "visibility": visibility,
            "min_face": min_face,
            "model": model,
            "base": base,
            "faces": faces,
            "color_fix": color_fix,
            "fidelity": fidelity,
        }

    def process(
        self,
        pp: Any,
        enable: bool = False,
        visibility: float = RestoreOptions.strength,
        min_face: float = DetectOptions.min_face,
        model: str | None = None,
        base: str | None = None,
        faces: str | None = None,
        color_fix: ColorFix | None = None,
        fidelity: float | None = None,
    ) -> None:
        """Restore one picture; arguments that an API call leaves out arrive as None."""
        if not enable or not visibility:
            return
        name = model or str(LoadOptions.source)
        pixels, count = restore(
            np.array(pp.image.convert("RGB")),
            name,
            base or NO_BASE,
            visibility,
            color_fix or RestoreOptions.color_fix,
            fidelity=RestoreOptions.fidelity if fidelity is None else fidelity,
            faces=faces or DetectOptions.faces,
            min_face=min_face or DetectOptions.min_face,
        )
        image = Image.fromarray(pixels)
        if pp.image.mode in ("RGBA", "LA"):
            image.putalpha(pp.image.getchannel("A"))
        pp.image = image
        pp.info["OSDFace visibility"] = round(visibility, 3)
        pp.info["OSDFace model"] = name
        pp.info["OSDFace faces"] = count


def on_ui_settings() -> None:
    """Declare the face restorer's options, beside those of the built-in ones."""
    section = ("face-restoration", "Face restoration")
    strength = TABLE["strength"]
    pickers: dict[str, tuple[Any, Any]] = {
        "source": (gr.Dropdown, lambda: {"choices": model_names()}),
        "base": (gr.Dropdown, lambda: {"choices": base_names()}),
        "strength": (
            gr.Slider,
            {"minimum": strength.low, "maximum": strength.high, "step": strength.step},
        ),
        "color_fix": (gr.Dropdown, {"choices": list(TABLE["color_fix"].choices)}),
    }
    for name, (component, arguments) in pickers.items():
        default = NO_BASE if name == "base" else TABLE[name].default
        label = f"OSDFace: {TABLE[name].called('webui')}"
        info = shared.OptionInfo(default, label, component, arguments, section=section)
        shared.opts.add_option("osdface_model" if name == "source" else f"osdface_{name}", info)


def register() -> None:
    """Take the place among the restorers; "Reload UI" runs this file again, so a former self goes."""
    others = [restorer for restorer in shared.face_restorers if restorer.name() != NAME]
    shared.face_restorers[:] = [*others, OSDFaceRestoration()]


register()
script_callbacks.on_ui_settings(on_ui_settings)
