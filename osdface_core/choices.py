"""The closed choices, each a type. `options.py` says what they do."""

from __future__ import annotations

from typing import Any, Literal, get_args

from .errors import OptionError

DetectorName = Literal["auto", "retinaface_resnet50", "retinaface_mobile0.25", "mtcnn"]
Effort = Literal["auto", "fast", "thorough"]
Order = Literal["size", "left_to_right", "top_to_bottom", "score"]
ColorFix = Literal["none", "adain", "wavelet", "luma"]
PasteMode = Literal["residual", "replace"]
Posterior = Literal["mode", "sample"]
LoRAMode = Literal["merged", "live"]
Codec = Literal["own", "taesd"]
Dtype = Literal["auto", "fp32", "fp16", "bf16"]
VideoCodec = Literal["auto", "h264", "hevc", "vp9", "av1", "prores", "ffv1"]
EngineName = Literal["auto", "eager", "native", "graphs", "compile"]


def check_choice(option: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of the choices.

    Args:
        option: its name in `options.py`.
        choices: one of the types above.
    Raises:
        OptionError: naming the choices.
    """
    if value not in get_args(choices):
        raise OptionError(option, value, f"one of {', '.join(get_args(choices))}")
