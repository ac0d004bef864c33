"""Entries of INPUT_TYPES with their tooltips, most of them made from the core's table of options."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from ..osdface_core.errors import OSDFaceError
from ..osdface_core.options import Chosen, Option, Options, in_words_of, options_of

MOST = 8192
"""What ComfyUI's numbers need as their end where the table has none."""
FOLDERS = {"upscale_model": "models/upscale_models", "detector_dir": "models/facedetection"}
"""Where files of an option belong that is no widget."""
P = ParamSpec("P")
R = TypeVar("R")
Entry = tuple[Any, dict[str, Any]]


def widgets(options: type[Options], *names: str) -> dict[str, Entry]:
    """Make the widgets of some options, by ComfyUI's names for them."""
    table = options_of(options)
    return {table[name].called("comfyui"): widget(table[name]) for name in names}


def widget(option: Option, more: str = "") -> Entry:
    """Make the widget of one option, with `more` in its tooltip; a number may stand for None."""
    tip = option.help + more
    if option.choices:
        return choice(list(option.choices), tip, option.default)
    default, low = option.default, option.low
    if option.optional:
        default = low = option.unset
        tip += f" {option.unset}: {option.none}."
    high = MOST if option.high is None else option.high
    if option.kind is int or option.unit == "px":
        return integer(int(default), int(low or 0), int(high), tip, int(option.step or 1))
    return decimal(default, low or 0.0, high, tip, option.step or 0.01)


def advanced(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Mark widgets that ComfyUI folds away until somebody asks for them."""
    return {name: (kind, {**details, "advanced": True}) for name, (kind, details) in entries.items()}


def chosen(options: type[Chosen], values: Mapping[str, Any]) -> Chosen:
    """Build options from those of a node's values that belong to them, by ComfyUI's names.

    Raises:
        OptionError: a value that the table does not allow.
    """
    table = {option.called("comfyui"): option for option in options_of(options).values()}
    return options(**{table[k].name: _value(table[k], v) for k, v in values.items() if k in table})


def _value(option: Option, value: Any) -> Any:
    return None if option.optional and value == option.unset else value


def named(run: Callable[P, R]) -> Callable[P, R]:
    """Make a node's function speak as ComfyUI does: errors of the core name options by the core's names.

    ComfyUI shows the module of an error, which is the pack's path unless it is told another.
    """

    @functools.wraps(run)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return run(*args, **kwargs)
        except OSDFaceError as error:
            said = re.sub(r"`(\w+)`", lambda m: FOLDERS.get(m[1], m[0]), str(error))
            error.args = (in_words_of("comfyui", said),)
            type(error).__module__ = "osdface_core"
            raise

    return call


def socket(kind: str, tip: str) -> Entry:
    return kind, {"tooltip": tip}


def choice(options: list[str], tip: str, default: str | None = None) -> Entry:
    return options, {"default": options[0] if default is None else default, "tooltip": tip}


def integer(default: int, low: int, high: int, tip: str, step: int = 1) -> Entry:
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip}


def decimal(default: float, low: float, high: float, tip: str, step: float = 0.01) -> Entry:
    return "FLOAT", {
        "default": default,
        "min": low,
        "max": high,
        "step": step,
        "round": 0.001,
        "tooltip": tip,
    }


def switch(default: bool, tip: str) -> Entry:
    return "BOOLEAN", {"default": default, "tooltip": tip}


def text(default: str, tip: str) -> Entry:
    return "STRING", {"default": default, "multiline": False, "tooltip": tip}
