"""The named errors of this package. Each message says what failed, got X, expected Y, and what to do."""


class OSDFaceError(Exception):
    """Base of every error that a user can act on; the command line prints it as one line."""


class CheckpointError(OSDFaceError):
    """A weight file is missing, truncated, of another model, or of an unknown format version."""


class ImageError(OSDFaceError):
    """A photo cannot be read, written or processed."""


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
