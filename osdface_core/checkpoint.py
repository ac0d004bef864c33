"""One model, one safetensors file: versioned header, strict, atomic.

Tensors `vre.*`, `projection.*`, and either `lora.*` (for a named base) or `unet.*` + `codec.*`.
Metadata `osdface.format`, `osdface.config`, `osdface.training`, `modelspec.*`.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import OSDFaceConfig, Within
from .errors import CheckpointError, one_line
from .file_kinds import kind_of_file, kind_of_tensors
from .files import writing
from .weights import misfits, shapes_of, unusable

T = TypeVar("T")
FORMAT = 1
PARTS = ("vre", "projection", "lora", "unet", "codec")
REQUIRED = {"lora": ("vre", "projection", "lora"), "full": ("vre", "projection", "unet", "codec")}


@dataclass(frozen=True)
class Checkpoint:
    """A file's content: how to build it, its tensors by full name, and where it came from."""

    config: OSDFaceConfig
    tensors: dict[str, Tensor]
    training: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors below `name.`, without that prefix."""
        stem = name + "."
        return {k[len(stem) :]: v for k, v in self.tensors.items() if k.startswith(stem)}

    @property
    def missing_parts(self) -> list[str]:
        """Parts that inference needs and this file lacks (a file of stage 1 holds the VRE alone)."""
        return missing_parts(self.config, self.tensors)


def missing_parts(config: OSDFaceConfig, names: Any) -> list[str]:
    present = {str(n).split(".", 1)[0] for n in names}
    return [part for part in REQUIRED[config.arch] if part not in present]


def save_checkpoint(
    path: str | Path,
    tensors: dict[str, Tensor],
    config: OSDFaceConfig,
    training: dict[str, Any] | None = None,
) -> None:
    """Write to a temporary name beside `path`, then rename: a killed run leaves the old file whole.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    if bad := sorted(k for k in tensors if k.split(".", 1)[0] not in PARTS):
        raise CheckpointError(
            f"cannot save {bad[0]}: tensors must be named {', '.join(p + '.*' for p in PARTS)}"
        )
    metadata = {
        "osdface.format": str(FORMAT),
        "osdface.config": json.dumps(config.to_dict()),
        "osdface.training": json.dumps(training or {}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"osdface/{config.arch}",
        "modelspec.title": config.name,
        "modelspec.prediction_type": config.prediction_type,
    }
    cpu, memory = {}, set[int]()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        cpu[name] = own.clone() if place in memory else own  # tied weights: the format has no such thing
        memory.add(place)
    with writing(path, CheckpointError) as temporary:
        save_file(cpu, temporary, metadata)


def read_header(path: str | Path) -> tuple[OSDFaceConfig, dict[str, Any], list[str]]:
    """Read config, provenance and tensor names, without reading a tensor.

    Raises:
        CheckpointError: missing, truncated, no OSDFace file, or of a newer format.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}; give a .safetensors file, a released folder, or mini"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        known = kind_of_file(path)
        raise CheckpointError(
            f"{path.name} is {known or f'truncated or no safetensors file ({error}); download it again'}"
        ) from error
    version = metadata.get("osdface.format")
    if version is None:
        known = kind_of_tensors(names) or "no OSDFace checkpoint (no osdface.format)"
        raise CheckpointError(f"{path.name} is {known}; give an OSDFace .safetensors or a released folder")
    if not version.isdecimal() or len(version) > 9 or int(version) > FORMAT:
        raise CheckpointError(
            f"{path.name} has format {version}, this osdface reads up to {FORMAT}; update osdface"
        )
    try:
        raw = json.loads(metadata["osdface.config"])
        training = json.loads(metadata.get("osdface.training", "{}"))
        if not isinstance(raw, dict) or not isinstance(training, dict):
            raise ValueError("no JSON objects")
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name}: the header's config is missing or damaged; download it again"
        ) from error
    return from_dict(OSDFaceConfig, raw, path.name), training, names


def load_config(path: str | Path) -> OSDFaceConfig:
    """Read the config from the header alone. Raises CheckpointError as `read_header`."""
    return read_header(path)[0]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read the whole file. Raises CheckpointError as `read_header`, and for tensors of unknown parts."""
    config, training, names = read_header(path)
    if bad := sorted(n for n in names if n.split(".", 1)[0] not in PARTS):
        raise CheckpointError(
            f"{Path(path).name}: unexpected tensor {bad[0]}; the file is of another program or version"
        )
    try:
        with safe_open(Path(path).expanduser(), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{Path(path).name} is truncated ({error}); download it again") from error
    return Checkpoint(config, tensors, training)


def load_strict(module: Any, tensors: dict[str, Tensor], where: str) -> None:
    """Load all tensors into all of a module's weights, in the module's own dtype.

    A module on the meta device, which has shapes only, gets its memory here, on the CPU.

    Raises:
        CheckpointError: names the first missing, extra or misshapen tensor, or one that holds no numbers.
    """
    own = module.state_dict()
    if problems := misfits(shapes_of(own), shapes_of(tensors)) or unusable(tensors):
        raise CheckpointError(f"{where}: {problems[0]}; the file is incomplete or of another model")
    empty = any(value.is_meta for value in own.values())
    if empty:  # copies, since the file's own memory changes when somebody writes over it
        tensors = {name: value.to(own[name].dtype, copy=True) for name, value in tensors.items()}
    module.load_state_dict(tensors, assign=empty)


def from_dict(cls: type[T], data: dict[str, Any], where: str = "config") -> T:
    """Build a frozen dataclass from JSON types, strictly.

    Raises:
        CheckpointError: an unknown key, a missing one without default, a value of another type or range.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - known):
        raise CheckpointError(f"{where}: unknown keys {', '.join(unknown)}; update osdface to read this file")
    try:
        return cls(**{k: _coerce(hints[k], v, f"{where}.{k}") for k, v in data.items()})
    except TypeError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind, allowed = typing.get_args(hint)
        return _check(_coerce(kind, value, where), allowed, where)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    if is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        item, rest = typing.get_args(hint)
        if rest is not Ellipsis:
            _check(value, Within(2, 2), where)
        return tuple(_coerce(item, v, where) for v in value)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise CheckpointError(f"{where}: got {value!r}, expected one of {typing.get_args(hint)}")
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return one_line(value) if isinstance(value, str) else value
    raise CheckpointError(f"{where}: got {value!r}, expected {getattr(hint, '__name__', hint)}")


def _check(value: Any, allowed: Within, where: str) -> Any:
    size, what = (value, "") if isinstance(value, (int, float)) else (len(value), " values")
    if not allowed.low <= size <= allowed.high:  # NaN is not within
        raise CheckpointError(f"{where}: got {size}{what}, expected {allowed.low:g}..{allowed.high:g}{what}")
    return value
