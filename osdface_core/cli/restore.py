"""`osdface restore`: its arguments, the loop over the inputs, and what is said about each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..console import complain, printable, say
from ..errors import CheckpointError, ConfigError
from ..options import DetectOptions, LoadOptions, PasteOptions, RestoreOptions, VideoOptions, pick
from .arguments import add_options

if TYPE_CHECKING:  # PyTorch and all that needs it load in the functions: --help answers at once
    from ..photo import OSDFacePipeline
    from .inputs import Guard, Job, Missing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface restore` on `parser`."""
    parser.epilog = (
        "Exit status: 0 all done, 1 some inputs failed (each is named, the others are done), 2 wrong usage."
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="photos, folders (with all below them) or globs; videos, or numbered pictures: frame_%%05d.png",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="a file for one input, else a folder"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_model_arguments(parser)
    faces = parser.add_argument_group("faces")
    faces.add_argument(
        "--aligned", action="store_true", help="inputs are aligned face crops; square ones give 512x512"
    )
    add_options(faces, DetectOptions)
    look = parser.add_argument_group("look")
    add_options(look, RestoreOptions)
    add_options(look, PasteOptions)
    add_options(parser.add_argument_group("videos"), VideoOptions)
    _add_writing_arguments(parser.add_argument_group("further results"))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that choose and place the model; `load` takes them."""
    add_options(parser.add_argument_group("model"), LoadOptions)


def load(args: argparse.Namespace) -> OSDFacePipeline:
    """Load the pipeline that `add_model_arguments` describe.

    Raises:
        ConfigError: the model cannot be loaded, which no input has part in.
    """
    from ..photo import OSDFacePipeline

    try:
        return OSDFacePipeline.from_pretrained(**vars(pick(LoadOptions, vars(args))))
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _add_writing_arguments(group: Any) -> None:
    group.add_argument("--crops", type=Path, metavar="DIR", help="aligned faces before and after, as PNG")
    group.add_argument("--compare", action="store_true", help="a before/after PNG beside each result")
    group.add_argument("--json", type=Path, metavar="FILE", help="report: inputs, outputs, faces, errors")
    group.add_argument(
        "--identity", metavar="FILE", help="weights of a recognition network, for identity scores"
    )


def run(args: argparse.Namespace) -> int:
    """Restore all inputs.

    Returns: 0 or 1, see the parser's epilog.
    Raises:
        ConfigError: the options or paths do not fit together, or the model cannot be loaded; nothing was
            touched.
    """
    from ..video import is_video
    from .inputs import Guard, plan
    from .report import save_json, summary
    from .usage import check_usage

    if any(is_video(given) for given in args.inputs):
        from .video import run_videos

        return run_videos(args, load)
    if args.aligned and (args.upscale != 1.0 or args.upscale_model):
        name = "upscale_model" if args.upscale == 1.0 else "upscale"
        raise ConfigError(f"--aligned gives 512x512 faces; leave `{name}` out")
    unused = check_usage(args)
    jobs, missing = plan(args.inputs, args.out.expanduser())
    guard = Guard(job.source for job in jobs)
    _refuse_overwriting(jobs, args, guard)
    for line in (*unused, *(f"{item.source}: {item.reason}" for item in missing)):
        complain(printable(line))
    records = [_failure(item) for item in missing if item.failed]
    left_out = [f"{item.source}: {item.reason}" for item in missing if not item.failed]
    try:
        if jobs:
            _restore_all(load(args), jobs, args, guard, records)
    finally:
        if args.json:
            save_json(summary(args, records, left_out), args.json)
    return 1 if any("error" in record for record in records) else 0


def _restore_all(
    pipeline: OSDFacePipeline,
    jobs: list[Job],
    args: argparse.Namespace,
    guard: Guard,
    records: list[dict[str, Any]],
) -> None:
    """A photo that fails is named and the others go on; three are in memory at a time at most."""
    from .batch import FileRestorer, Plan
    from .report import failure_line, tell_detector

    values = vars(args)
    sets = pick(DetectOptions, values), pick(RestoreOptions, values), pick(PasteOptions, values)
    how = Plan(*sets, args.identity, args.aligned, args.crops, args.compare)
    single = len(jobs) == 1
    tell_detector(args)
    hidden = True if args.quiet else None  # None: hidden where stderr is no terminal
    with tqdm(total=len(jobs), unit="face" if single else "photo", disable=hidden, file=sys.stderr) as bar:

        def tell(job: Job, result: Any) -> None:
            if isinstance(result, Exception):
                result = {"input": str(job.source), "error": failure_line(result)}
                complain(printable(f"{job.source}: {result['error']}"))
            else:
                say(printable(_line(result, args.aligned)))
                for note in result["notes"]:
                    complain(printable(f"{job.source}: {note}"))
            records.append(result)
            if not single:
                bar.update()

        restorer = FileRestorer(pipeline, how, guard, _faces_on(bar) if single else None)
        runner_for(pipeline, jobs)(jobs, restorer, tell)


def runner_for(pipeline: OSDFacePipeline, jobs: Sequence[Job]) -> Callable[..., None]:
    """Choose `overlapped` where it pays: with PyTorch's own layers the steps compete for cores (1.54 x)."""
    from .batch import one_by_one, overlapped

    return overlapped if pipeline.engine.overlaps and len(jobs) > 1 else one_by_one


def _faces_on(bar: Any) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        bar.total, bar.n = total, done
        bar.refresh()

    return progress


def _refuse_overwriting(jobs: list[Job], args: argparse.Namespace, guard: Guard) -> None:
    """Before anything is read: no result may take the place of an input or of another result."""
    from .batch import compare_path

    targets = {job.target for job in jobs}
    for job in jobs:
        if guard.refused(job.target):
            raise ConfigError(
                f"{job.target} is an input and is never overwritten; give another place with -o"
            )
        if args.compare and (guard.refused(compare_path(job.target)) or compare_path(job.target) in targets):
            raise ConfigError(
                f"{compare_path(job.target)} is taken by a photo; leave --compare out or give another -o"
            )
    if args.json and (guard.refused(args.json) or args.json in targets):
        raise ConfigError(f"--json {args.json} is a photo of this run; give another name")


def _failure(item: Missing) -> dict[str, Any]:
    return {"input": item.source, "error": item.reason}


def _line(record: dict[str, Any], aligned: bool) -> str:
    count = 1 if aligned else len(record["faces"])
    return f"{record['output']}  {count} face{'' if count == 1 else 's'}  {record['seconds']:.1f} s"
