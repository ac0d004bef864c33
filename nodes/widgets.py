"""Entries of INPUT_TYPES with their tooltips, so that no widget is without one."""

from __future__ import annotations

from typing import Any

Entry = tuple[Any, dict[str, Any]]


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
