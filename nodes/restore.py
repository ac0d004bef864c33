"""From crops to restored crops: the prompt, the one step, and the identity guard."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from ..osdface_core.options import RestoreOptions
from . import host
from .identity import UNKNOWN, check_guard, guard, load_scorer, scores
from .models import Embedder, Restorer
from .sockets import BACKBONE, VRE
from .widgets import advanced, chosen, decimal, socket, widgets

GUARD_TIP = (
    "A restored face less like the original than this (cosine, 0 to 1) gets a lower strength until it is. 0: "
    "off. 0.5 to 0.7 is a sensible range. Needs mobilefacenet.pt in models/osdface."
)
Conditioning = list[list[Any]]


class OSDFaceEncodePrompt:
    CATEGORY = "OSDFace"
    DESCRIPTION = (
        "Turns each face crop into a prompt of 77 visual tokens. The result is an ordinary CONDITIONING with "
        "one row per face, which other nodes can save, average or combine."
    )
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("One prompt per face, for One-Step Restore.",)
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "vre": socket(VRE, "From Load VRE; of the same checkpoint as the restorer."),
                "crops": socket("IMAGE", "Face crops from Detect Faces."),
            }
        }

    def encode(self, vre: Embedder, crops: Tensor) -> tuple[Conditioning]:
        pixels = host.from_crops(crops)
        progress = host.Progress(len(pixels))
        prompts = vre.encode(pixels, progress.step)
        if not len(prompts):  # no face: a row of zeros, which other nodes for CONDITIONING can take
            prompts = prompts.new_zeros(1, *prompts.shape[1:])
        return ([[prompts.to(host.result_device()), {}]],)


class OSDFaceRestore:
    CATEGORY = "OSDFace"
    SEARCH_ALIASES = ["face restore", "face enhance", "deblur face"]  # noqa: RUF012
    DESCRIPTION = (
        "Restores face crops in one diffusion step, all faces of all frames in batches. No seed: the same "
        "face gives the same result, alone or among others."
    )
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("crops",)
    OUTPUT_TOOLTIPS = ("Restored crops in the same order, for Paste Back.",)
    FUNCTION = "restore"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "backbone": socket(BACKBONE, "From Load Restorer or Backbone from MODEL."),
                "conditioning": socket(
                    "CONDITIONING", "From Encode Prompt: one row per crop, or one row for all."
                ),
                "crops": socket("IMAGE", "The crops that were encoded."),
                **widgets(RestoreOptions, "strength"),
                **advanced(widgets(RestoreOptions, "timestep")),
                **widgets(RestoreOptions, "color_fix"),
                **advanced(widgets(RestoreOptions, "batch_size")),
            },
            "optional": advanced(widgets(RestoreOptions, "fidelity")),
        }

    def restore(
        self, backbone: Restorer, conditioning: Conditioning, crops: Tensor, **options: Any
    ) -> tuple[Tensor]:
        pixels, how = host.from_crops(crops), chosen(RestoreOptions, options)
        if not len(pixels) or not how.strength:
            return (crops,)
        progress = host.Progress(len(pixels))
        restored = backbone.restore(
            pixels,
            prompts_of(conditioning),
            how,
            tick=lambda count, batch: progress.step(count, batch[-1]),
        )
        return (host.to_image(restored),)


class OSDFaceIdentityGuard:
    CATEGORY = "OSDFace"
    SEARCH_ALIASES = ["face similarity", "face recognition", "arcface"]  # noqa: RUF012
    DESCRIPTION = (
        "Scores how much each restored face still is the person it was, and blends those that drifted back "
        "towards the original until they reach the threshold. Works after any restorer that gives aligned "
        "crops."
    )
    RETURN_TYPES = ("IMAGE", "FLOAT", "FLOAT", "STRING")
    RETURN_NAMES = ("crops", "identity_before", "identity_after", "json")
    OUTPUT_IS_LIST = (False, True, True, False)
    OUTPUT_TOOLTIPS = (
        "The restored crops, guarded.",
        "Score of each face before restoration: 1.0 without a reference. nan where threshold is 0 and "
        "mobilefacenet.pt is missing, and one nan if there is no face.",
        "Score of each face after restoration and guarding.",
        "Scores and the part of the strength that was kept, per face.",
    )
    FUNCTION = "check"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "before": socket("IMAGE", "Crops from Detect Faces."),
                "after": socket("IMAGE", "The same crops, restored."),
                "threshold": decimal(0.0, 0.0, 1.0, GUARD_TIP),
            },
            "optional": {
                "reference": socket(
                    "IMAGE",
                    "A good crop of the person (from Detect Faces on another photo), or one per face.",
                )
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, threshold: float | None = None) -> bool | str:  # noqa: N802
        return check_guard(threshold)

    def check(
        self, before: Tensor, after: Tensor, threshold: float, reference: Tensor | None = None
    ) -> tuple[Tensor, list[float], list[float], str]:
        if len(before) != len(after):
            raise ValueError(f"{len(before)} crops before and {len(after)} after: connect the same faces")
        first, second = host.from_crops(before), host.from_image(after)
        if not len(first):
            return after, [UNKNOWN], [UNKNOWN], "[]"
        person = None if reference is None else host.from_crops(reference)
        if person is not None and not len(person):
            person = None
        scorer = load_scorer(required=threshold > 0)
        if scorer is None:
            unknown = [UNKNOWN] * len(first)
            return after, unknown, unknown, "[]"
        kept = [1.0] * len(first)
        if threshold > 0:
            second, keep = guard(scorer, first, second, threshold, person)
            kept = keep.tolist()
        pairs = scores(scorer, first, second, person)
        rows = [
            {"face": i, "identity_before": a, "identity_after": b, "strength_kept": k}
            for i, ((a, b), k) in enumerate(zip(pairs, kept, strict=True))
        ]
        return host.to_image(second), [a for a, _ in pairs], [b for _, b in pairs], json.dumps(rows, indent=1)


def prompts_of(conditioning: Conditioning) -> Tensor:
    """Collect the prompts (N, 77, D) in a CONDITIONING; several (Conditioning Combine) follow each other.

    Raises:
        ValueError: nothing in it, or entries of different widths.
    """
    rows = [entry[0] for entry in conditioning]
    if not rows:
        raise ValueError("the conditioning is empty: connect Encode Prompt")
    if len({row.shape[1:] for row in rows}) != 1:
        shapes = ", ".join(str(tuple(row.shape)) for row in rows)
        raise ValueError(f"conditionings of different models were combined ({shapes}): use one VRE for all")
    return torch.cat(rows).float()
