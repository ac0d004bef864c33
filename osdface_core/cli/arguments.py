"""Command-line arguments, made from the table of options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from ..options import Option, Options, options_of


def add_options(group: Any, options: type[Options], *names: str) -> None:
    """Declare those of a set of options that are named, or all, on a parser or group."""
    table = options_of(options)
    for option in [table[name] for name in names] or table.values():
        flags = option.flags or (option.called("cli"),)
        group.add_argument(
            *flags, dest=option.name, type=_reader(option), default=option.default, metavar=_metavar(option),
            help=_help(option),
        )  # fmt: skip


def _reader(option: Option) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return option.parse(text)
        except OptionError as error:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {error.expected}") from error

    return read


def _metavar(option: Option) -> str | None:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    if option.kind is str:
        return option.metavar
    return (option.span if option.high is not None else "") or option.unit.upper() or "N"


def _help(option: Option) -> str:
    default = option.none if option.default is None else option.default
    return f"{option.help} ({default})" if default != "" else option.help
