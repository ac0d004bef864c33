"""OSDFace: one-step diffusion face restoration (arXiv 2411.17163).

Names are imported when first used, so that `import osdface_core` costs nothing and never needs a GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load_config
    from .config import OSDFaceConfig
    from .errors import (
        CheckpointError,
        ConfigError,
        DetectorError,
        ImageError,
        OptionError,
        OSDFaceError,
        VideoError,
    )
    from .faces import Face, align, detect, paste, select
    from .images import Photo, read_photo, write_photo
    from .photo import OSDFacePipeline, PhotoResult
    from .video import VideoResult, restore_video

    __version__: str

_HOME = {
    "checkpoint": ("load_config",),
    "config": ("OSDFaceConfig",),
    "errors": (
        "CheckpointError", "ConfigError", "DetectorError", "ImageError", "OSDFaceError", "OptionError",
        "VideoError",
    ),
    "faces": ("Face", "align", "detect", "paste", "select"),
    "images": ("Photo", "read_photo", "write_photo"),
    "photo": ("OSDFacePipeline", "PhotoResult"),
    "video": ("VideoResult", "restore_video"),
}  # fmt: skip

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DetectorError",
    "Face",
    "ImageError",
    "OSDFaceConfig",
    "OSDFaceError",
    "OSDFacePipeline",
    "OptionError",
    "Photo",
    "PhotoResult",
    "VideoError",
    "VideoResult",
    "align",
    "detect",
    "load_config",
    "paste",
    "read_photo",
    "restore_video",
    "select",
    "write_photo",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    for home, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    """Read the version where it is written, in pyproject.toml.

    A clone that ComfyUI loads is not installed, and another release may be: its own file comes first.
    """
    import re
    from pathlib import Path

    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    found = re.search(r'^name = "osdface"\nversion = "([^"]+)"', text, re.MULTILINE)
    if found:
        return found[1]
    from importlib import metadata  # late: more to load than all the rest

    return metadata.version("osdface")
