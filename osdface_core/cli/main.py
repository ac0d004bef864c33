"""`osdface …`: subcommands, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from .. import __version__
from ..console import complain, use_escapes
from ..errors import ConfigError, OSDFaceError
from ..options import in_words_of
from .allocator import keep_freed_memory

# Subcommand: (what it does in a line, the module with its `add_arguments` and `run`). A module is imported
# only when its command is named, so that `osdface --help` answers at once.
COMMANDS = {
    "restore": ("restore the faces of photos", ".restore"),
    "app": ("photos, folders and videos in a browser", "..app.command"),
    "bulk": ("restore the photos of a folder or bucket on many machines", ".bulk"),
    "demo": ("degrade and restore a photo that a package ships; no network", ".demo"),
    "info": ("what a checkpoint holds, from its header", ".info"),
    "convert": ("the released files to one .safetensors, and back", ".convert"),
    "bench": ("medians per stage, faces per second, peak memory", "benchmarks"),
}
# Handed to the trainer package, which a ComfyUI installation does not need.
TRAINER_COMMANDS = {
    "prepare": "make aligned training faces from photos",
    "train": "train stage 1 (vre) or stage 2 (restorer)",
    "evaluate": "the paper's metrics for restored faces",
    "degrade": "preview what a degradation does",
    "report": "draw the curves and the report of a run again",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    Returns:
        0 all done, 1 something failed (named on stderr), 2 wrong usage, 130 interrupted.
    """
    use_escapes()
    if argv is None:
        keep_freed_memory()
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else ""
    if name in TRAINER_COMMANDS:
        return answer(name, lambda: _trainer(argv))

    def run() -> int:
        args = _parser(name).parse_args(argv)
        return args.run(args)

    return answer(name, run)


def answer(name: str, run: Callable[[], int]) -> int:
    """Do what a subcommand does; an error is one line and an exit status, as `main` says."""
    try:
        return run()
    except OSDFaceError as error:
        complain(f"osdface {name}: {in_words_of('cli', str(error))}")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        complain(f"osdface {name}: interrupted; no half-written file is left")
        return 130


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("osdface", description="One-step diffusion face restoration.")
    parser.add_argument("--version", action="version", version=f"osdface {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, (about, module) in COMMANDS.items():
        subparser = commands.add_parser(command, help=about, description=about[0].upper() + about[1:] + ".")
        if command == name:
            home = _load(module)
            home.add_arguments(subparser)
            subparser.set_defaults(run=home.run)
    for command, about in TRAINER_COMMANDS.items():
        commands.add_parser(command, help=about)
    return parser


def _load(module: str) -> ModuleType:
    """Import the module of a subcommand. Raises OSDFaceError for `bench` without a clone."""
    try:
        return importlib.import_module(module, __package__)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    clone = Path(__file__).resolve().parents[2]  # `benchmarks` lies there and is never installed
    if not (clone / module).is_dir():
        raise OSDFaceError(f"{module}/ is not installed: run this command from a clone (pip install -e .)")
    sys.path.append(str(clone))
    return importlib.import_module(module)


def _trainer(argv: list[str]) -> int:
    """Hand over to `osdface_trainer.cli`, by name: the core itself never depends on the trainer."""
    try:
        trainer = importlib.import_module("osdface_trainer.cli")
    except ModuleNotFoundError as error:
        missing = error.name or "osdface_trainer"
        raise OSDFaceError(
            f'{missing} is not installed, which training needs: pip install "osdface[train]" '
            '(in a clone: pip install -e ".[train]")'
        ) from error
    return trainer.main(argv)
