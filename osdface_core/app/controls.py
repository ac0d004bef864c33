"""What the dials of a web page are made with, from the table of options; Gradio itself is not imported."""

from __future__ import annotations

from typing import Any

from ..options import Option


def dial(option: Option, **changed: Any) -> dict[str, Any]:
    """Collect what a slider of an option is made with; a number may stand for None."""
    low, default = (option.unset, option.unset) if option.optional else (option.low, option.default)
    info = option.help + (f" {option.unset}: {option.none}." if option.optional else "")
    return {
        "minimum": low, "maximum": option.high, "step": option.step or 1, "value": default,
        "label": option.called("webui"), "info": info, **changed,
    }  # fmt: skip


def value_of(option: Option, shown: Any) -> Any:
    """Turn what a component holds into an option's value: None where its number or an empty text says so."""
    return None if option.optional and shown in (option.unset, "", None) else shown


def menu(option: Option, choices: list[str] | None = None, **changed: Any) -> dict[str, Any]:
    """Collect what a drop-down of an option is made with."""
    return {
        "choices": choices or list(option.choices), "value": option.default,
        "label": option.called("webui"), "info": option.help, **changed,
    }  # fmt: skip
