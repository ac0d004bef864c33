"""`osdface train|prepare|evaluate`, `python -m osdface_trainer …`: arguments, one-line errors, exit codes."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from osdface_core.console import complain, say, use_escapes
from osdface_core.errors import ConfigError, OSDFaceError
from osdface_core.options import in_words_of


@dataclass(frozen=True)
class Command:
    """A subcommand: what it does in a line, how it adds its arguments, what runs it."""

    about: str
    add_arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    Returns: 0 done, 1 failed, 2 wrong usage or recipe.
    """
    use_escapes()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:2] == RECOGNITION.split():
        argv[:2] = [RECOGNITION]
    parser = argparse.ArgumentParser("osdface", description="Train and judge OSDFace models.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.about, description=command.about)
        if argv[:1] == [name]:  # the others' modules stay unimported
            command.add_arguments(subparser)
    args = parser.parse_args(argv)
    try:
        return COMMANDS[args.command].run(args)
    except OSDFaceError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            complain(f"osdface {args.command}: {in_words_of('cli', str(error))}")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=("vre", "restorer"), help="vre is stage 1, restorer is stage 2")
    parser.add_argument("recipe", help="a TOML file, or a shipped one: paper, finetune, mini, smoke")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="overrides",
                        help="change a key of the recipe; may be repeated")  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--fresh", action="store_true", help="start over; a former run is kept under another name"
    )
    how.add_argument("--resume", action="store_true", help="insist on continuing (continuing is the default)")
    parser.add_argument("--dry-run", action="store_true",
                        help="check weights and faces, print what would run; write nothing")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _train(args: argparse.Namespace) -> int:
    from .recipe.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if args.dry_run:
        from .dry_run import dry_run

        return dry_run(recipe, args.stage, fresh=args.fresh, resume=args.resume, quiet=args.quiet)
    from .loop import train

    outcome = train(recipe, args.stage, fresh=args.fresh, resume=args.resume, quiet=args.quiet)
    if int(os.environ.get("RANK", "0")) == 0:
        say(f"{args.stage}: {outcome.reason} at step {outcome.step:,} of {outcome.total:,}")
        if outcome.reason in ("time", "interrupted"):
            say("the same command continues it")
        if outcome.best is not None:
            say(_chosen(outcome.best, recipe.run.stop_metric))
        say(f"model {outcome.export}" + (f"\nreport {outcome.report}" if outcome.report else ""))
    return 130 if outcome.reason == "interrupted" else 0


def _chosen(best: int, metric: str) -> str:
    if best == 0:
        return f"no step had a better {metric} than the start: the model is what the training began with"
    return f"the model is that of step {best:,}, the best {metric} on the validation faces"


def _of_module(name: str, about: str) -> Command:
    """Make a command of a module (`add_arguments`, `run`), imported when it is wanted."""

    def module() -> Any:
        return import_module(f".{name}", __package__)

    return Command(about, lambda parser: module().add_arguments(parser), lambda args: module().run(args))


def _degrade_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("faces", help="a folder of aligned faces, a manifest or a shard pattern")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the picture to write (.png or .jpg)")
    parser.add_argument(
        "--profile", help="names of profiles, separated by commas (default: mild,medium,severe)"
    )
    parser.add_argument("--recipe", help="take [degrade] of this recipe instead")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", dest="overrides")
    parser.add_argument("--count", type=int, default=4, metavar="N", help="faces, one per row (4)")
    parser.add_argument(
        "--repeats", type=int, default=1, metavar="N", help="pictures per profile and face (1)"
    )
    parser.add_argument("--side", type=int, default=256, metavar="PX", help="shown size of a face (256)")
    parser.add_argument("--seed", type=int, default=0)


def _degrade(args: argparse.Namespace) -> int:
    from osdface_core.files import replacing

    from .data.dataset import FaceDataset
    from .data.preview import preview_grid
    from .recipe.config import load_recipe

    if args.recipe and args.profile:
        raise ConfigError("give --profile or --recipe, not both")
    if args.recipe:
        profiles = [load_recipe(args.recipe, args.overrides).degrade.degradation()]
    else:
        profiles = [name.strip() for name in (args.profile or "mild,medium,severe").split(",")]
    faces = FaceDataset(args.faces)
    count = min(max(1, args.count), len(faces))
    hq = faces.get([i * len(faces) // count for i in range(count)]).float() / 255
    sheet = preview_grid(hq, profiles, args.seed, repeats=args.repeats, side=args.side)
    try:
        with replacing(args.out) as temporary:
            sheet.save(temporary)
    except (OSError, ValueError) as error:
        raise OSDFaceError(f"{args.out} cannot be written: {error}") from error
    say(str(args.out))
    return 0


def _report(args: argparse.Namespace) -> int:
    from .report import write_report

    say(str(write_report(args.folder, args.folder.resolve().name)))
    return 0


RECOGNITION = "evaluate recognition"
COMMANDS = {
    "train": Command("train stage 1 (vre) or stage 2 (restorer)", _train_arguments, _train),
    "prepare": _of_module("prepare.cli", "make training faces from photos"),
    "evaluate": _of_module("evaluation.cli", "judge restored faces"),
    RECOGNITION: _of_module("evaluation.recognition", "are people recognised, with and without restoration?"),
    "degrade": Command("preview what a degradation does", _degrade_arguments, _degrade),
    "report": Command(
        "draw the curves and the report of a run again",
        lambda parser: parser.add_argument("folder", type=Path, help="stage folder, e.g. runs/osdface/vre"),
        _report,
    ),
}
