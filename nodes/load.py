"""Loaders: files of models/osdface, and ComfyUI's own MODEL and VAE, onto the pack's sockets."""

from __future__ import annotations

from typing import Any

from ..osdface_core.choices import Dtype
from ..osdface_core.options import LoadOptions, options_of
from . import host
from .lora import read_lora, to_comfyui
from .models import Embedder, Restorer
from .sockets import BACKBONE, VRE
from .widgets import advanced, choice, socket, widget, widgets

CHECKPOINT_TIP = (
    "Files of models/osdface. mini: the small model that comes with this pack. A name that ends in / is a "
    "folder with the three released files (associate_2.ckpt, embedding_change_weights.pth, "
    "pytorch_lora_weights.safetensors)."
)
BASE_TIP = (
    "Stable Diffusion 2.1-base for checkpoints that are a LoRA: v2-1_512-ema-pruned.safetensors in "
    "models/checkpoints or a folder in models/diffusers. none for mini and other self-contained checkpoints."
)


class OSDFaceLoadVRE:
    CATEGORY = "OSDFace"
    DESCRIPTION = (
        "Loads the visual representation embedder (VRE), which turns a face into the prompt of its "
        "restoration."
    )
    RETURN_TYPES = (VRE,)
    RETURN_NAMES = ("vre",)
    OUTPUT_TOOLTIPS = ("For Encode Prompt. It runs in float32 on purpose.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"vre": choice(host.checkpoint_names(), CHECKPOINT_TIP)}}

    @classmethod
    def IS_CHANGED(cls, vre: str | None = None) -> str | float:  # noqa: N802
        return host.changed(vre)

    def load(self, vre: str) -> tuple[Embedder]:
        return (Embedder.load(host.checkpoint_path(vre)),)


class OSDFaceLoadRestorer:
    CATEGORY = "OSDFace"
    DESCRIPTION = (
        "Loads the one-step diffusion model: self-contained, or Stable Diffusion 2.1-base with an OSDFace "
        "LoRA."
    )
    RETURN_TYPES = (BACKBONE,)
    RETURN_NAMES = ("backbone",)
    OUTPUT_TOOLTIPS = (
        "For One-Step Restore. ComfyUI moves it to and from the GPU as it does with its own models.",
    )
    FUNCTION = "load"

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()  # what was loaded: a cache of files, not of anything about a run
        self._restorer: Restorer | None = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "checkpoint": choice(host.checkpoint_names(), CHECKPOINT_TIP),
                "base": choice(host.base_names(), BASE_TIP),
                **widgets(LoadOptions, "lora_scale"),
                **advanced(widgets(LoadOptions, "dtype")),
            }
        }

    @classmethod
    def IS_CHANGED(cls, checkpoint: str | None = None, base: str | None = None, **_: Any) -> str | float:  # noqa: N802
        return host.changed(checkpoint, base)

    def load(self, checkpoint: str, base: str, lora_strength: float, dtype: Dtype) -> tuple[Restorer]:
        paths = host.checkpoint_path(checkpoint), host.base_path(base)
        key = (*paths, host.stamp(*paths), dtype)
        if self._restorer is None or key != self._key or not self._restorer.takes(lora_strength):
            self._restorer = None  # first, so that memory holds one
            self._restorer, self._key = Restorer.load(*paths, lora_strength, dtype)[0], key
        return (self._restorer.at(lora_strength),)


class OSDFaceBackboneFromModel:
    CATEGORY = "OSDFace"
    DESCRIPTION = (
        "Restores with the Stable Diffusion 2.1-base that ComfyUI has loaded: fp8, offloading, LoRA chains "
        "and --lowvram work as everywhere, and no second copy is kept. Put the OSDFace LoRA on MODEL with "
        "Apply LoRA."
    )
    RETURN_TYPES = (BACKBONE,)
    RETURN_NAMES = ("backbone",)
    OUTPUT_TOOLTIPS = ("For One-Step Restore.",)
    FUNCTION = "wrap"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": socket(
                    "MODEL", "Stable Diffusion 2.1-base (512 pixels) with the OSDFace LoRA on it."
                ),
                "vae": socket("VAE", "The VAE of the same checkpoint."),
            }
        }

    def wrap(self, model: Any, vae: Any) -> tuple[Restorer]:
        return (Restorer.from_sockets(model, vae),)


class OSDFaceApplyLoRA:
    CATEGORY = "OSDFace"
    DESCRIPTION = (
        "Puts an OSDFace LoRA on a MODEL, every layer of it. ComfyUI's own LoRA loaders skip the attention "
        "layers of the released file, because it names them in a style that they do not know; the result "
        "would be wrong."
    )
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("MODEL with the LoRA; other LoRA loaders may follow.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        tip = (
            "pytorch_lora_weights.safetensors in models/loras or models/osdface, or an OSDFace checkpoint of "
            "models/osdface that holds a LoRA. none: MODEL passes through."
        )
        return {
            "required": {
                "model": socket("MODEL", "Stable Diffusion 2.1-base (512 pixels)."),
                "lora": choice(host.lora_names(), tip),
                "strength": widget(options_of(LoadOptions)["lora_scale"]),
            }
        }

    @classmethod
    def IS_CHANGED(cls, lora: str | None = None, **_: Any) -> str | float:  # noqa: N802
        if lora is None:
            return float("nan")
        return "" if lora == host.NONE else host.stamp(host.lora_path(lora))

    def apply(self, model: Any, lora: str, strength: float) -> tuple[Any]:
        if lora == host.NONE or strength == 0.0:
            return (model,)
        factors, alpha = read_lora(host.lora_path(lora))
        patched, count = host.load_lora(model, to_comfyui(factors, alpha), strength)
        if count != len(factors):
            raise ValueError(
                f"{lora}: {count} of {len(factors)} LoRA layers fit this MODEL; load Stable Diffusion "
                f"2.1-base, "
                "v2-1_512-ema-pruned.safetensors"
            )
        return (patched,)
