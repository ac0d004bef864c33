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
from osdface_core.released import is_released_folder

NAME = "OSDFace"
MODELS = Path(paths.models_path) / NAME
NO_BASE = "none"
COLOR_FIXES = ["none", "adain", "wavelet", "luma"]
SELECTIONS = ["all", "largest", "center"]


def model_names() -> list[str]:
    """`mini`, checkpoints in models/OSDFace, and folders there with the three released files."""
    files = sorted(p.name for p in MODELS.glob("*.safetensors")) if MODELS.is_dir() else []
    folders = sorted(p.name for p in MODELS.iterdir() if is_released_folder(p)) if MODELS.is_dir() else []
    return ["mini", *files, *folders]


def base_names() -> list[str]:
    """The web UI's own Stable Diffusion checkpoints that are .safetensors; a LoRA model needs a 2.1-base."""
    from modules import sd_models

    return [
        NO_BASE,
        *sorted(n for n, c in sd_models.checkpoints_list.items() if c.filename.endswith(".safetensors")),
    ]


def base_path(name: str) -> str | None:
    """The file behind a choice of `base_names`."""
    from modules import sd_models

    info = sd_models.checkpoints_list.get(name)
    return info.filename if info else None


class Models:
    """The last pipeline that was used, kept until another one is asked for."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.pipeline: Any = None

    def get(self, model: str, base: str) -> Any:
        """The pipeline for these choices. Raises CheckpointError."""
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


models = Models()


def restore(image: np.ndarray, model: str, base: str, **options: Any) -> tuple[np.ndarray, int]:
    """RGB (H, W, 3) uint8 in and out, and how many faces were restored; errors leave the image as it was."""
    try:
        result = models.get(model, base).restore_photo(image, **options)
        return np.asarray(result.image), len(result.faces)
    except osdface_core.OSDFaceError as error:
        errors.report(f"OSDFace: {error}")
        return image, 0
    finally:
        if shared.opts.data.get("face_restoration_unload", False):
            models.release()


class OSDFaceRestoration(face_restoration.FaceRestoration):
    """The choice "OSDFace" of Settings > Face restoration, of img2img's checkbox and of the API."""

    def name(self) -> str:
        return NAME

    def restore(self, np_image: np.ndarray) -> np.ndarray:
        """RGB uint8 (H, W, 3), one picture as the sampler made it."""
        chosen = shared.opts.data
        return restore(
            np_image,
            chosen.get("osdface_model", "mini"),
            chosen.get("osdface_base", NO_BASE),
            strength=chosen.get("osdface_strength", 1.0),
            color_fix=chosen.get("osdface_color_fix", "none"),
        )[0]


class ScriptPostprocessingOSDFace(scripts_postprocessing.ScriptPostprocessing):
    """The panel of the Extras tab; runs after upscaling, so that small faces have room."""

    name = NAME
    order = 3100

    def ui(self) -> dict[str, Any]:
        with InputAccordion(False, label=NAME, elem_id="extras_osdface") as enable:
            with gr.Row():
                visibility = gr.Slider(minimum=0.0, maximum=1.0, step=0.01, label="Visibility", value=1.0)
                min_face = gr.Slider(
                    minimum=0, maximum=512, step=4, label="Leave faces below [px] alone", value=0
                )
            with gr.Row():
                model = gr.Dropdown(choices=model_names(), value="mini", label="Model")
                base = gr.Dropdown(choices=base_names(), value=NO_BASE, label="Stable Diffusion 2.1-base")
            with gr.Row():
                faces = gr.Dropdown(choices=SELECTIONS, value="all", label="Faces")
                color_fix = gr.Dropdown(choices=COLOR_FIXES, value="none", label="Colour fix")
        return {
            "enable": enable,
            "visibility": visibility,
            "min_face": min_face,
            "model": model,
            "base": base,
            "faces": faces,
            "color_fix": color_fix,
        }

    def process(
        self,
        pp: Any,
        enable: bool = False,
        visibility: float = 1.0,
        min_face: float = 0,
        model: str | None = None,
        base: str | None = None,
        faces: str | None = None,
        color_fix: str | None = None,
    ) -> None:
        """Called per picture; arguments that an API call leaves out arrive as None."""
        if not enable or not visibility:
            return
        chosen = {"model": model or "mini", "base": base or NO_BASE}
        look = {"faces": faces or "all", "color_fix": color_fix or "none", "min_face": min_face or 0}
        source = np.array(pp.image.convert("RGB"))
        pixels, count = restore(source, **chosen, strength=visibility, **look)
        image = Image.fromarray(pixels)
        if pp.image.mode in ("RGBA", "LA"):
            image.putalpha(pp.image.getchannel("A"))
        pp.image = image
        pp.info["OSDFace visibility"] = round(visibility, 3)
        pp.info["OSDFace model"] = chosen["model"]
        pp.info["OSDFace faces"] = count


def on_ui_settings() -> None:
    """Options of the face restorer, beside those of the built-in ones."""
    section = ("face-restoration", "Face restoration")
    for key, default, label, component, arguments in (
        ("osdface_model", "mini", "OSDFace model", gr.Dropdown, lambda: {"choices": model_names()}),
        (
            "osdface_base",
            NO_BASE,
            "OSDFace: Stable Diffusion 2.1-base",
            gr.Dropdown,
            lambda: {"choices": base_names()},
        ),
        (
            "osdface_strength",
            1.0,
            "OSDFace strength",
            gr.Slider,
            {"minimum": 0.0, "maximum": 1.0, "step": 0.05},
        ),
        ("osdface_color_fix", "none", "OSDFace colour fix", gr.Dropdown, {"choices": COLOR_FIXES}),
    ):
        shared.opts.add_option(key, shared.OptionInfo(default, label, component, arguments, section=section))


def register() -> None:
    """Take the place among the restorers; "Reload UI" runs this file again, so a former self goes."""
    others = [restorer for restorer in shared.face_restorers if restorer.name() != NAME]
    shared.face_restorers[:] = [*others, OSDFaceRestoration()]


register()
script_callbacks.on_ui_settings(on_ui_settings)
