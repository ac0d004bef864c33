"""The named errors of this package. Each message says what failed, got X, expected Y, and what to do."""

import re

LONGEST = 1500  # characters of a line; what comes from a file may be of any length


class OSDFaceError(Exception):
    """Base of every error that a user can act on: one line for each argument, whatever stands in them.

    Line ends and control characters, as in the names of a hostile file's tensors, become spaces; the middle
    of what is too long is left out.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(map(one_line, lines)))


def one_line(text: str) -> str:
    """Make any text one line of at most `LONGEST` characters."""
    text = re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 3]} ... {text[-half + 2 :]}"


class CheckpointError(OSDFaceError):
    """A weight file is missing, truncated, of another model, or of an unknown format version."""


class ImageError(OSDFaceError):
    """A photo cannot be read, written or processed."""


class VideoError(OSDFaceError):
    """A video cannot be read, written or processed, or PyAV is missing."""


class DetectorError(OSDFaceError):
    """A face detector or its weights are unavailable."""


class ConfigError(OSDFaceError):
    """A recipe or option has an unknown key, a wrong type or a value out of range."""


class OptionError(ConfigError):
    """An option has a value that the table of options does not allow.

    Attributes:
        option: its name in that table.
        got, expected: what was given, and what is allowed.
    """

    def __init__(self, option: str, got: object, expected: str) -> None:
        super().__init__(f"`{option}` is {got!r}, expected {expected}")
        self.option, self.got, self.expected = option, got, expected
