"""One line, whatever stands in a file that an error quotes."""

from __future__ import annotations

from osdface_core.errors import LONGEST, CheckpointError, ConfigError, OptionError


def test_an_error_is_one_line() -> None:
    error = CheckpointError("x: 1 tensors missing, first a\r\n\x1b[2Jb\u2028c\x00d; the file is incomplete")
    assert str(error) == "x: 1 tensors missing, first a [2Jb c d; the file is incomplete"
    assert "\n" not in str(OptionError("faces", "a\nb", "all"))


def test_an_error_is_of_bounded_length() -> None:
    text = str(CheckpointError(f"begins {'x' * 10_000_000} ends"))
    assert (
        len(text) <= LONGEST and text.startswith("begins x") and text.endswith("x ends") and " ... " in text
    )


def test_several_lines_are_several_arguments() -> None:
    assert str(ConfigError("wrong:", "  a: b\nc", "  d: e")) == "wrong:\n  a: b c\n  d: e"
