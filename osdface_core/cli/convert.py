"""`osdface convert`: the released files to one .safetensors, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..checkpoint import load_checkpoint, save_checkpoint
from ..console import say
from ..errors import CheckpointError, ConfigError
from ..files import writing
from ..released import BRANCH, LORA_FILE, PROJECTION_FILE, RELEASED_FILES, VRE_FILE, read_released


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface convert` on `parser`."""
    parser.epilog = f"A released folder holds {', '.join(RELEASED_FILES)}."
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="released folder; with --to-released a checkpoint"
    )
    parser.add_argument(
        "target", type=Path, metavar="DST", help="new .safetensors; with --to-released a folder"
    )
    parser.add_argument(
        "--to-released", action="store_true", help="from one checkpoint to the three released files"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, print what was written, return 0.

    Raises:
        ConfigError: the two paths do not fit the direction.
        CheckpointError: the source cannot be read or the target not written.
    """
    source, target = args.source.expanduser(), args.target.expanduser()
    if args.to_released:
        if source.is_dir():
            raise ConfigError(f"{source} is a folder; --to-released takes one of our .safetensors")
        if target.is_file():
            raise ConfigError(f"{target} is a file; --to-released writes three files into a folder")
        if source.name in RELEASED_FILES and source.resolve().parent == target.resolve():
            raise ConfigError(f"{source} would be overwritten; give another folder")
        convert_to_released(source, target)
        say("\n".join(str(target / name) for name in RELEASED_FILES))
        return 0
    if not source.is_dir():
        raise ConfigError(f"{source} is no folder; give the one that holds {', '.join(RELEASED_FILES)}")
    if target.suffix != ".safetensors" or target.is_dir():
        raise ConfigError(f"{target} must be a file that ends in .safetensors")
    if target.exists() and any(
        target.samefile(source / name) for name in RELEASED_FILES if (source / name).exists()
    ):
        raise ConfigError(f"{target} is one of the files to convert; give another name")
    convert_released(source, target)
    say(str(target))
    return 0


def convert_released(folder: str | Path, target: str | Path) -> None:
    """Convert a released folder to one .safetensors; every tensor bit for bit."""
    checkpoint = read_released(folder)
    save_checkpoint(target, checkpoint.tensors, checkpoint.config, checkpoint.training)


def convert_to_released(source: str | Path, folder: str | Path) -> None:
    """Convert one of our LoRA checkpoints to the three released files.

    Raises:
        CheckpointError: the checkpoint is self-contained or incomplete, or the folder cannot be written.
    """
    checkpoint = load_checkpoint(source)
    if checkpoint.config.arch != "lora" or checkpoint.missing_parts:
        raise CheckpointError(
            f"{Path(source).name} has no LoRA for Stable Diffusion; only such models have the released layout"
        )
    if checkpoint.config.projection.positions:
        raise CheckpointError(
            f"{Path(source).name} has a prompt with positions, which the released layout cannot hold"
        )
    if checkpoint.config.lora and checkpoint.config.lora.encoder:
        raise CheckpointError(
            f"{Path(source).name} adapts the VAE's encoder too, which the released layout cannot hold"
        )
    folder = Path(folder)
    vre = {BRANCH + k: v for k, v in checkpoint.part("vre").items()}
    lora = {f"unet.{k}": v for k, v in checkpoint.part("lora").items()}
    with writing(folder / VRE_FILE, CheckpointError) as path:
        torch.save({"state_dict": vre}, path)
    with writing(folder / PROJECTION_FILE, CheckpointError) as path:
        torch.save(checkpoint.part("projection"), path)
    with writing(folder / LORA_FILE, CheckpointError) as path:
        save_file(lora, path, {"format": "pt"})
