# pyright: reportMissingImports=false
"""Automatic1111 and Forge: OSDFace in the Extras tab and among the face restorers, thin on the core.

The web UI puts the extension's folder on `sys.path` while it loads this file, which is how the rest is found.
"""

from __future__ import annotations

from typing import Any

try:
    import gradio as gr
    import numpy as np
    from modules import face_restoration, script_callbacks, scripts, scripts_postprocessing, shared
    from modules.ui_common import create_refresh_button
    from modules.ui_components import InputAccordion
    from PIL import Image

    from osdface_webui.api import add_routes
    from osdface_webui.choices import NO_BASE, base_names, model_names
    from osdface_webui.work import last, restore
except ImportError as lacking:
    raise ImportError(f"OSDFace needs Automatic1111 1.8 or newer, or Forge: {lacking}") from lacking

from osdface_core.app.controls import dial, menu
from osdface_core.options import (
    WORDS,
    DetectOptions,
    LoadOptions,
    PasteOptions,
    RestoreOptions,
    options_of,
)

__all__ = ["last"]
NAME = "OSDFace"
CHOSEN = "Face restoration model"  # the web UI's infotext tells which one ran, and only whether is read back
TABLE = {
    name: option
    for options in (LoadOptions, DetectOptions, RestoreOptions, PasteOptions)
    for name, option in options_of(options).items()
}
DIALS = ("min_face", "threshold", "fidelity", "feather", "timestep")
"""Options of the panel that are sliders, and those that are menus:"""
MENUS = ("detector", "color_fix")


class OSDFaceRestoration(face_restoration.FaceRestoration):
    """The choice "OSDFace" of Settings > Face restoration, of img2img's checkbox and of the API."""

    note: dict[str, Any] = {}  # noqa: RUF012
    """What the last picture's infotext says."""

    def name(self) -> str:
        return NAME

    def restore(self, np_image: np.ndarray) -> np.ndarray:
        """Restore RGB uint8 (H, W, 3), one picture as the sampler made it."""
        chosen = shared.opts.data
        model = chosen.get("osdface_model", LoadOptions.source)
        strength = chosen.get("osdface_strength", RestoreOptions.strength)
        how = {"strength": strength, "color_fix": chosen.get("osdface_color_fix", RestoreOptions.color_fix)}
        outcome = restore(np_image, model, chosen.get("osdface_base", NO_BASE), how)
        OSDFaceRestoration.note = (
            {"OSDFace error": outcome.error}
            if outcome.error
            else {"OSDFace model": model, "OSDFace strength": round(strength, 3)}
        )
        return outcome.image


class OSDFaceInfotext(scripts.Script):
    """Writes what the face restorer did into the picture's infotext."""

    def title(self) -> str:
        return f"{NAME} infotext"

    def show(self, is_img2img: bool) -> Any:
        del is_img2img
        return scripts.AlwaysVisible

    def postprocess_image(self, p: Any, pp: Any, *arguments: Any) -> None:
        """Note the picture that was restored just before; nothing where another restorer or none ran."""
        del pp, arguments
        for key in [key for key in p.extra_generation_params if key.startswith("OSDFace ")]:
            del p.extra_generation_params[key]
        p.extra_generation_params.update(OSDFaceRestoration.note)
        OSDFaceRestoration.note = {}


class ScriptPostprocessingOSDFace(scripts_postprocessing.ScriptPostprocessing):
    """The panel of the Extras tab; runs after upscaling, so that small faces have room."""

    name = NAME
    order = 3100

    def ui(self) -> dict[str, Any]:
        with InputAccordion(False, label=NAME) as enable:
            # Each has a line of its own: beside each other, Gradio squeezes what explains them.
            visibility = gr.Slider(**dial(TABLE["strength"], label="Visibility", step=0.01))
            with gr.Row():
                model = gr.Dropdown(**menu(TABLE["source"], model_names()))
                create_refresh_button(model, lambda: None, lambda: {"choices": model_names()}, None)
            with gr.Row():
                base = gr.Dropdown(**menu(TABLE["base"], base_names(), value=NO_BASE))
                create_refresh_button(base, lambda: None, lambda: {"choices": base_names()}, None)
            faces = gr.Dropdown(**menu(TABLE["faces"], list(WORDS), allow_custom_value=True))
            rest: dict[str, Any] = {name: gr.Dropdown(**menu(TABLE[name])) for name in MENUS}
            for name in DIALS:
                limits = {"maximum": 512, "step": 4} if name == "min_face" else {}
                rest[name] = gr.Slider(**dial(TABLE[name], **limits))
        return {
            "enable": enable,
            "visibility": visibility,
            "model": model,
            "base": base,
            "faces": faces,
            **rest,
        }

    def process(
        self,
        pp: Any,
        enable: bool = False,
        visibility: float = RestoreOptions.strength,
        model: str | None = None,
        base: str | None = None,
        **options: Any,
    ) -> None:
        """Restore one picture; arguments that an API call leaves out arrive as None."""
        if not enable or not visibility:
            return
        how = {name: value for name, value in options.items() if value is not None}
        if how.get("timestep") == TABLE["timestep"].unset:
            del how["timestep"]
        source, model = np.array(pp.image.convert("RGB")), model or str(LoadOptions.source)
        outcome = restore(source, model, base or NO_BASE, {**how, "strength": visibility})
        if outcome.error:
            pp.info["OSDFace error"] = outcome.error
            return
        image = Image.fromarray(outcome.image)
        if pp.image.mode in ("RGBA", "LA"):
            image.putalpha(pp.image.getchannel("A"))
        pp.image = image
        pp.info["OSDFace visibility"] = round(visibility, 3)
        pp.info["OSDFace model"] = model
        pp.info["OSDFace faces"] = len(outcome.faces)


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
    read_back = {"source": "OSDFace model", "strength": "OSDFace strength"}
    for name, (component, arguments) in pickers.items():
        default = NO_BASE if name == "base" else TABLE[name].default
        label = f"OSDFace: {TABLE[name].called('webui')}"
        info = shared.OptionInfo(
            default, label, component, arguments, section=section, infotext=read_back.get(name),
            refresh=(lambda: None) if name in ("source", "base") else None,
        )  # fmt: skip
        shared.opts.add_option("osdface_model" if name == "source" else f"osdface_{name}", info)
    if "face_restoration_model" in shared.opts.data_labels:
        shared.opts.data_labels["face_restoration_model"].infotext = CHOSEN


def on_infotext_pasted(infotext: str, parameters: dict[str, Any]) -> None:
    """Choose this restorer again for a picture that it restored."""
    del infotext
    if parameters.get("Face restoration") == NAME:
        parameters[CHOSEN] = NAME


def add_axes() -> None:
    """Offer strength and model to the X/Y/Z plot, whose script has no other door than its list."""
    for data in scripts.scripts_data:
        grid = data.module
        if getattr(grid, "__name__", "").removesuffix(".py") != "xyz_grid":
            continue
        if any(axis.label == "OSDFace strength" for axis in grid.axis_options):
            return
        grid.axis_options += [
            grid.AxisOption("OSDFace strength", float, grid.apply_override("osdface_strength")),
            grid.AxisOption("OSDFace model", str, grid.apply_override("osdface_model"), choices=model_names),
        ]


def register() -> None:
    """Take the place among the restorers; "Reload UI" runs this file again, so a former self goes."""
    others = [restorer for restorer in shared.face_restorers if restorer.name() != NAME]
    shared.face_restorers[:] = [*others, OSDFaceRestoration()]


register()
script_callbacks.on_ui_settings(on_ui_settings)
script_callbacks.on_infotext_pasted(on_infotext_pasted)
script_callbacks.on_before_ui(add_axes)
script_callbacks.on_app_started(add_routes)
