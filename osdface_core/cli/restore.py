"""`osdface restore`: its arguments, the loop over the inputs, and what is said about each."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..console import complain, printable, say
from ..errors import CheckpointError, ConfigError
from ..options import DetectOptions, LoadOptions, PasteOptions, RestoreOptions, VideoOptions, pick
from .arguments import add_options

if TYPE_CHECKING:  # PyTorch and all that needs it load in the functions: --help answers at once
    from ..photo import OSDFacePipeline
    from .batch import Plan
    from .inputs import Folder, Guard, Job
    from .report import Tally


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
    add_photo_arguments(parser)
    parser.add_argument(
        "--tags", metavar="TEXT|sidecar",
        help="what the photos show, or sidecar: in a .txt beside each; for models with a text prompt",
    )  # fmt: skip
    add_options(parser.add_argument_group("videos"), VideoOptions)
    further = parser.add_argument_group("further results")
    further.add_argument("--crops", type=Path, metavar="DIR", help="aligned faces before and after, as PNG")
    further.add_argument("--compare", action="store_true", help="a before/after PNG beside each result")
    further.add_argument("--json", type=Path, metavar="FILE", help="report: inputs, outputs, faces, errors")
    add_record_arguments(further)
    further.add_argument(
        "--attention-maps", type=Path, metavar="DIR",
        help="a PNG per face: where the UNet looks at each of --tokens (runs with --engine eager)",
    )  # fmt: skip
    further.add_argument(
        "--tokens", metavar="LIST", help="numbers of the prompt's tokens for --attention-maps (0-6)"
    )
    large = parser.add_argument_group("large folders", "see docs/scale.md")
    add_skip_arguments(large, "always so if an input is a folder")
    large.add_argument("--shard", metavar="I/N", help="share I of N of the photos, from 0; by their names")
    large.add_argument(
        "--devices", metavar="D,D", help="one process each, which share the photos: cuda:0,cuda:1"
    )


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


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say which faces of photos are restored, and how."""
    faces = parser.add_argument_group("faces")
    faces.add_argument(
        "--aligned", action="store_true", help="inputs are aligned face crops; square ones give 512x512"
    )
    add_options(faces, DetectOptions)
    look = parser.add_argument_group("look")
    add_options(look, RestoreOptions)
    add_options(look, PasteOptions)


def add_record_arguments(group: Any) -> None:
    """Declare what is noted about each photo while the work goes on."""
    group.add_argument(
        "--report", type=Path, metavar="FILE", help="a line of JSON per photo, appended when it is done"
    )
    group.add_argument(
        "--identity", metavar="FILE", help="weights of a recognition network, for identity scores"
    )


def add_skip_arguments(group: Any, always: str) -> None:
    """Declare what becomes of photos whose results are there; `always`: when they are left out anyway."""
    skipping = group.add_mutually_exclusive_group()
    skipping.add_argument(
        "--skip-existing", action="store_true",
        help=f"leave photos out whose result is newer than they are ({always})",
    )  # fmt: skip
    skipping.add_argument("--redo", action="store_true", help="restore them again")


def run(args: argparse.Namespace) -> int:
    """Restore all inputs.

    Returns: 0 or 1, see the parser's epilog.
    Raises:
        ConfigError: the options or paths do not fit together, or the model cannot be loaded; nothing was
            touched.
    """
    from ..video import is_video
    from .inputs import Folder, Guard, plan
    from .processes import run_on
    from .report import Tally, save_json, summary
    from .shards import parse_shard
    from .usage import check_usage

    if any(is_video(given) for given in args.inputs):
        from .video import run_videos

        for name in ("shard", "devices", "report"):
            if getattr(args, name):
                raise ConfigError(f"--{name} is for photos; leave it out for videos")
        return run_videos(args, load)
    unused = check_usage(args)
    shard = parse_shard(args.shard) if args.shard else None
    if args.devices:
        return run_on(args.devices.split(","), args, shard)
    jobs, missing = plan(args.inputs, args.out.expanduser(), args.crops, shard)
    guard = Guard(jobs if isinstance(jobs, Folder) else [job.source for job in jobs])
    _refuse_overwriting(jobs, args, guard)
    for line in (*unused, *(f"{item.source}: {item.reason}" for item in missing)):
        complain(printable(line))
    tally = Tally(args.report, [] if args.json else None)
    left_out = [f"{item.source}: {item.reason}" for item in missing if not item.failed]
    try:
        for item in missing:
            if item.failed:
                tally.add({"input": item.source, "error": item.reason})
        folders = (Path(given).expanduser() for given in args.inputs)
        skip = args.skip_existing or any(map(os.path.isdir, folders))  # Path fails where no disk has the name
        todo = unfinished(jobs, tally) if skip and not args.redo else iter(jobs)
        if first := next(todo, None):  # a folder that is done needs no model
            _restore_all(load(args), chain([first], todo), args, guard, tally, jobs)
    finally:
        if args.json:
            save_json(summary(args, tally.records or [], left_out, skipped=tally.skipped), args.json)
        if tally.skipped or shard:
            complain(f"shard {shard}: {tally}" if shard else str(tally))
    return 1 if tally.failed else 0


def unfinished(jobs: Iterable[Job], tally: Tally) -> Iterator[Job]:
    """Leave out, and count, photos that are older than their results."""
    for job in jobs:
        try:
            newer = job.target.stat().st_mtime_ns > job.source.stat().st_mtime_ns
        except OSError:
            newer = False
        if newer:
            tally.skipped += 1
        else:
            yield job


def _restore_all(
    pipeline: OSDFacePipeline,
    todo: Iterable[Job],
    args: argparse.Namespace,
    guard: Guard,
    tally: Tally,
    jobs: Sized,
) -> None:
    """A photo that fails is named and the others go on; three are in memory at a time at most."""
    from .batch import FileRestorer
    from .report import failure_line, tell_detector
    from .tags import prompts_of

    prompt = prompts_of(args.base, args.tags) if args.tags else None
    plan = dataclasses.replace(collect_plan(args), prompt=prompt)
    single = len(jobs) == 1
    before = tally.failed  # inputs that led to no photo
    tell_detector(args)
    hidden = True if args.quiet else None  # None: hidden where stderr is no terminal
    with tqdm(total=len(jobs), unit="face" if single else "photo", disable=hidden, file=sys.stderr) as bar:

        def tell(job: Job, result: Any) -> None:
            if isinstance(result, Exception):
                result = {"input": str(job.source), "error": failure_line(result)}
            tell_record(result, args.aligned)
            tally.add(result)
            if not single:
                bar.update(tally.done + tally.failed + tally.skipped - before - bar.n)

        restorer = FileRestorer(pipeline, plan, guard, _faces_on(bar) if single else None)
        runner_for(pipeline, jobs)(todo, restorer, tell)


def collect_plan(args: argparse.Namespace) -> Plan:
    """Collect what the arguments say about every file. Raises OptionError for what the table refuses."""
    from .attention import DEFAULT_TOKENS, parse_tokens
    from .batch import Plan

    values = vars(args)
    sets = pick(DetectOptions, values), pick(RestoreOptions, values), pick(PasteOptions, values)
    tokens = tuple(parse_tokens(DEFAULT_TOKENS if args.tokens is None else args.tokens))
    beside = args.crops, args.compare, args.attention_maps, tokens
    return Plan(*sets, args.identity, args.aligned, *beside)


def tell_record(record: dict[str, Any], aligned: bool) -> None:
    """Print what became of a photo: a line on its result, or on its failure, and one for each note."""
    if "error" in record:
        complain(printable(f"{record['input']}: {record['error']}"))
        return
    count = 1 if aligned else len(record["faces"])
    faces = f"{count} face{'' if count == 1 else 's'}"
    say(printable(f"{record['output']}  {faces}  {record['seconds']:.1f} s"))
    for note in record["notes"]:
        complain(printable(f"{record['input']}: {note}"))


def runner_for(pipeline: OSDFacePipeline, jobs: Sized) -> Callable[..., None]:
    """Choose `overlapped` where it pays: with PyTorch's own layers the steps compete for cores (1.54 x)."""
    from .batch import one_by_one, overlapped

    return overlapped if pipeline.engine.overlaps and len(jobs) > 1 else one_by_one


def _faces_on(bar: Any) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        bar.total, bar.n = total, done
        bar.refresh()

    return progress


def _refuse_overwriting(jobs: list[Job] | Folder, args: argparse.Namespace, guard: Guard) -> None:
    """Before anything is read: no result may take the place of an input or of another result."""
    from .batch import compare_path

    if not isinstance(jobs, list):
        refuse_in_folder(jobs, (args.out, args.crops, args.attention_maps), args.compare)
        return
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


def refuse_in_folder(jobs: Folder, places: Iterable[Path | None], compare: bool = False) -> None:
    """Refuse the inputs' own folder for results, which the search would meet. Raises ConfigError."""
    from .batch import compare_path

    len(jobs)  # lists the folder: links in it lead to others, which `holds` has to know
    for place in places:
        if place is not None and jobs.holds(place.expanduser()):
            raise ConfigError(f"{place} has the inputs, which are never overwritten; give another folder")
    for job in jobs if compare else ():
        taken = compare_path(job.target).name
        if job.source.with_name(taken).exists():
            raise ConfigError(f"{taken} is taken by a photo; leave --compare out")
