"""OSDFace: one-step diffusion face restoration (arXiv 2411.17163).

Names are imported when first used, so that `import osdface_core` costs nothing and never needs a GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load_config
    from .config import OSDFaceConfig
    from .errors import CheckpointError, ConfigError, DetectorError, ImageError, OSDFaceError
    from .faces import Face, align, detect, paste, select
    from .photo import PhotoResult
    from .pipeline import OSDFacePipeline

__version__ = "0.1.0"

_HOME = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DetectorError": "errors",
    "Face": "faces",
    "ImageError": "errors",
    "OSDFaceConfig": "config",
    "OSDFaceError": "errors",
    "OSDFacePipeline": "pipeline",
    "PhotoResult": "photo",
    "align": "faces",
    "detect": "faces",
    "load_config": "checkpoint",
    "paste": "faces",
    "select": "faces",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DetectorError",
    "Face",
    "ImageError",
    "OSDFaceConfig",
    "OSDFaceError",
    "OSDFacePipeline",
    "PhotoResult",
    "align",
    "detect",
    "load_config",
    "paste",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
