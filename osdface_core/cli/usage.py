"""What is wrong with the options of a run, and which of them do nothing: said before the model loads."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoint import read_header
from ..config import OSDFaceConfig
from ..errors import CheckpointError, ConfigError, OptionError
from ..images import is_photo
from ..loading import resolve
from ..models.identity import load_identity
from ..models.text import text_files
from ..options import (
    DetectOptions,
    LoadOptions,
    Options,
    PasteOptions,
    RestoreOptions,
    VideoOptions,
    options_of,
    pick,
)
from ..video.formats import is_sequence, is_video
from .attention import DEFAULT_TOKENS, check_tokens, parse_tokens

PLACES = ("base", "codec_dir", "detector_dir", "upscale_model")
"""Options that name a file or folder which has to be there."""


def check_usage(args: argparse.Namespace) -> list[str]:
    """Check options against each other and against the disk.

    Returns:
        the options that were given and do nothing, a line for each reason.
    Raises:
        ConfigError: a value that is wrong, whether or not it is used.
    """
    videos = any(map(is_video, args.inputs))
    if args.aligned and not videos and (args.upscale != 1.0 or args.upscale_model):
        name = "upscale_model" if args.upscale == 1.0 else "upscale"
        raise ConfigError(f"--aligned gives 512x512 faces; leave `{name}` out")
    for name in ("json", "report"):
        if (file := getattr(args, name)) and is_photo(file):
            raise ConfigError(f"--{name} {file} has the name of a photo; give another name")
        if file and file.is_dir():
            raise ConfigError(f"--{name} {file} is a folder; give a file name")
    for options in (DetectOptions, RestoreOptions, PasteOptions):
        pick(options, vars(args))
    check_places(args)
    config, training = _header(args.source)
    if args.fidelity < 1.0 and config and not config.codec.fidelity_dial:
        raise OptionError("fidelity", args.fidelity, "1: this model has no such dial")
    if args.crops is not None:
        check_folder("--crops", args.crops)
    if args.attention_maps is not None:
        _check_attention(args, config)
    if args.tags is not None:
        _check_tags(args, training)
    if args.identity is not None:
        try:
            load_identity(args.identity)
        except CheckpointError as error:
            raise ConfigError(f"--identity {args.identity}: {error}") from error
    return [f"{' '.join(flags)} not used: {reason}" for flags, reason in _unused(args, config) if flags]


def _check_attention(args: argparse.Namespace, config: OSDFaceConfig | None) -> None:
    """Check what `--attention-maps` needs, and choose the engine that has it."""
    check_folder("--attention-maps", args.attention_maps)
    tokens = parse_tokens(DEFAULT_TOKENS if args.tokens is None else args.tokens)
    if config:
        check_tokens(tokens, config.vre.tokens)
    if args.engine not in ("auto", "eager"):
        raise ConfigError(f"--attention-maps needs the engine eager; leave --engine {args.engine} out")
    args.engine = "eager"


def _check_tags(args: argparse.Namespace, training: dict[str, Any]) -> None:
    """Check that there are tags, a model that was trained with such, and the base's text encoder."""
    if not args.tags.strip():
        raise ConfigError("--tags is empty: give words, or leave it out")
    if training.get("prompt") != "text":
        raise ConfigError("--tags: this model has no text prompt; leave it out")
    try:
        text_files(args.base or "")
    except CheckpointError as error:
        raise ConfigError(f"--tags: {error}") from error


def check_places(args: argparse.Namespace) -> None:
    """Look for the files and folders that options name. Raises ConfigError: one is not there."""
    for name in PLACES:
        value = getattr(args, name)
        if value is None or Path(value).expanduser().exists():
            continue
        if name == "detector_dir" and getattr(args, "detector", "").startswith("retinaface"):
            check_folder("--detector-dir", Path(value))  # weights are fetched into it
        else:
            raise ConfigError(f"no file or folder at `{name}` {value}: check the path, or leave it out")


def check_folder(flag: str, path: Path) -> None:
    """Refuse a folder that cannot be made since a file is in its way. Raises ConfigError."""
    path = path.expanduser()
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{flag} {path}: {place} is a file; give a folder")


def _unused(args: argparse.Namespace, config: OSDFaceConfig | None) -> Iterator[tuple[list[str], str]]:
    """Options that differ from their defaults and have no effect, with the reason."""
    if args.aligned:
        yield _given(args, DetectOptions), "--aligned looks for no faces"
        yield _given(args, PasteOptions), "--aligned pastes nothing"
    elif args.detector == "mtcnn":
        yield _given(args, DetectOptions, "detector_dir"), "MTCNN comes with this program"
    if args.tokens is not None and args.attention_maps is None:
        yield ["--tokens"], "--attention-maps is not there"
    if args.upscale == 1.0:
        yield _given(args, PasteOptions, "upscale_model"), "--upscale is 1"
    if args.codec == "own":
        yield _given(args, LoadOptions, "codec_dir"), "--codec is own"
    if not any(map(is_video, args.inputs)):
        yield _given(args, VideoOptions), "the inputs are photos"
    elif not any(map(is_sequence, args.inputs)):
        yield _given(args, VideoOptions, "fps"), "video files keep their own times"
    if config and config.arch == "full":
        names = ("lora_scale", "lora") if args.tags else ("base", "lora_scale", "lora")  # tags read the base
        yield _given(args, LoadOptions, *names), "the model is self-contained"


def _given(args: argparse.Namespace, options: type[Options], *names: str) -> list[str]:
    table = options_of(options)
    return [
        table[name].called("cli") for name in names or table if getattr(args, name) != table[name].default
    ]


def _header(source: str | Path) -> tuple[OSDFaceConfig | None, dict[str, Any]]:
    """Read what a model is and how it was trained; what is no model is reported when it is loaded."""
    path = resolve(source)
    try:
        return (OSDFaceConfig(), {}) if path.is_dir() else read_header(path)[:2]
    except CheckpointError:
        return None, {}
