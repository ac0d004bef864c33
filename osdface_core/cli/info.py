"""`osdface info`: what a checkpoint is, where it came from, and whether all of it is there."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .. import __version__
from ..checkpoint import missing_parts, read_header
from ..config import OSDFaceConfig
from ..console import say
from ..loading import build_empty, resolve
from ..weights import Shapes, misfits, shapes_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface info` on `parser`."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="mini, a .safetensors file, or a released folder"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the description; return 0 (also for an incomplete file, which is a fact and not a failure).

    Raises:
        CheckpointError: the file is missing, truncated or of another kind.
    """
    facts = describe(args.checkpoint)
    say(json.dumps(facts, indent=2) if args.json else as_text(facts))
    if not args.json and (long := _nested(facts["training"])):
        say(f"--json    shows {', '.join(long)} too")
    return 0


def describe(source: str | Path) -> dict[str, Any]:
    """Describe a checkpoint by its header, without reading a tensor.

    Args:
        source: as in `OSDFacePipeline.from_pretrained`.
    Returns:
        plain JSON types: file, bytes, parts {name: {tensors, parameters}}, complete, problems (one line
        each), config, training.
    Raises:
        CheckpointError: as `checkpoint.read_header`.
    """
    path = resolve(source)
    config, training, shapes = _released(path) if path.is_dir() else _own(path)
    problems = find_problems(config, shapes)
    return {
        "file": str(path),
        "osdface": __version__,
        "bytes": sum(f.stat().st_size for f in path.iterdir() if f.is_file())
        if path.is_dir()
        else path.stat().st_size,
        "parts": _parts(shapes),
        "complete": not problems,
        "problems": problems,
        "config": config.to_dict(),
        "training": training,
    }


def find_problems(config: OSDFaceConfig, found: Shapes) -> list[str]:
    """List what keeps a file of this header from restoring faces, one line each.

    The adapters' own names are left to the base model that they will meet.
    """
    absent = missing_parts(config, found)
    problems = [f"no {part}" for part in absent]
    expected = _expected(config)
    for part in sorted({name.split(".", 1)[0] for name in expected} - set(absent)):
        own, given = (
            {name: shape for name, shape in shapes.items() if name.startswith(part + ".")}
            for shapes in (expected, found)
        )
        problems += [f"{part}: {line}" for line in misfits(own, given)]
    return problems


def as_text(facts: dict[str, Any]) -> str:
    """Lay the description out as lines for people."""
    config, training = facts["config"], facts["training"]
    kind = (
        "self-contained" if config["arch"] == "full" else f"LoRA for {config['base']} (give it with --base)"
    )
    lines = [
        f"{config['name']}: {kind}",
        f"file      {facts['file']} ({facts['bytes'] / 1e6:.1f} MB)",
        f"complete  {'yes' if facts['complete'] else 'no: ' + '; '.join(facts['problems'])}",
    ]
    lines += [
        f"{name:<9} {part['parameters'] / 1e6:.2f} M parameters in {part['tensors']} tensors"
        for name, part in facts["parts"].items()
    ]
    vre = config["vre"]
    low, high = vre["input_range"]
    lines.append(f"tokens    {vre['tokens']} of {vre['codebook_size']} codes, VRE input {low:g}..{high:g}")
    lines.append(f"timestep  {config['timestep']} of {config['train_timesteps']}")
    long = _nested(training)
    lines += [
        f"{key:<9} {value}" for key, value in training.items() if key not in long and value not in ("", None)
    ]
    return "\n".join(lines)


def _nested(training: dict[str, Any]) -> list[str]:
    """Names of what is too long for a line."""
    return [key for key, value in training.items() if isinstance(value, (dict, list))]


def _own(path: Path) -> tuple[OSDFaceConfig, dict[str, Any], Shapes]:
    config, training, names = read_header(path)
    with safe_open(path, framework="pt") as file:
        return config, training, {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _released(path: Path) -> tuple[OSDFaceConfig, dict[str, Any], Shapes]:
    from ..released import read_released

    checkpoint = read_released(path)
    return checkpoint.config, checkpoint.training, shapes_of(checkpoint.tensors)


def _expected(config: OSDFaceConfig) -> Shapes:
    """Names and shapes of a complete file, from the empty modules; nothing is allocated."""
    return {
        f"{part}.{k}": tuple(v.shape)
        for part, module in build_empty(config, config.name).items()
        for k, v in module.state_dict().items()
    }


def _parts(shapes: Shapes) -> dict[str, dict[str, int]]:
    parts: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        part = parts.setdefault(name.split(".", 1)[0], {"tensors": 0, "parameters": 0})
        part["tensors"] += 1
        part["parameters"] += math.prod(shape)
    return parts
