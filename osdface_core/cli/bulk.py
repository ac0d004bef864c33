"""`osdface bulk`: the photos of a folder or a bucket on all machines of a Ray cluster."""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from ..console import complain, printable
from ..errors import ConfigError
from ..options import VideoOptions
from .restore import (
    add_model_arguments,
    add_photo_arguments,
    add_record_arguments,
    add_skip_arguments,
    tell_record,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface bulk` on `parser`."""
    parser.epilog = (
        "Exit status: 0 all done, 1 some photos failed (each is named, the others are done), 2 wrong usage. "
        "See docs/scale.md."
    )
    parser.add_argument("photos", metavar="SRC", help="a folder, with all below it, or a URL such as s3://…")
    parser.add_argument("out", metavar="DST", help="where the results go: a folder or a URL")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    ray = parser.add_argument_group("machines")
    ray.add_argument(
        "--ray", metavar="ADDRESS",
        help="the cluster this machine is part of: auto or HOST:6379 (RAY_ADDRESS, or this machine alone)",
    )  # fmt: skip
    ray.add_argument(
        "--workers", type=_workers, metavar="N",
        help="processes that hold the model (one for each GPU; one for each machine if there are none)",
    )  # fmt: skip
    add_model_arguments(parser)
    add_photo_arguments(parser)
    further = parser.add_argument_group("further results")
    add_record_arguments(further)
    add_skip_arguments(further, "always so")
    # What `osdface restore` has besides, as if it were not given.
    nothing = dict.fromkeys(("crops", "json", "tags", "attention_maps", "tokens"))
    parser.set_defaults(inputs=[], compare=False, **nothing, **vars(VideoOptions()))


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Restore all photos of `args.photos`.

    Returns: 0 or 1, see the parser's epilog.
    Raises:
        ConfigError: the options or places do not fit together, Ray is missing or not to be reached, or the
            model cannot be loaded; nothing was touched.
    """
    from .places import Disk, check_apart, place
    from .ray_data import records
    from .report import Tally
    from .usage import check_usage

    if args.ray and args.ray.startswith("ray://"):
        raise ConfigError(
            f"--ray {args.ray}: Ray Data works on a machine of the cluster only; "
            "run `ray job submit --address http://HOST:8265 -- osdface bulk …`, or this command there"
        )
    source = place(args.photos)
    if isinstance(source, Disk) and not source.root.is_dir():
        raise ConfigError(f"{source}: no such folder")
    check_apart(source, place(args.out))
    for line in check_usage(args):
        complain(printable(line))
    tally = Tally(args.report)
    hidden = True if args.quiet else None  # None: hidden where stderr is no terminal
    with tqdm(unit="photo", disable=hidden, file=sys.stderr) as bar:
        for record in records(args):
            match record:
                case {"stop": reason}:
                    raise ConfigError(reason)
                case {"left_out": line}:
                    complain(printable(line))
                case {"skipped": _}:
                    tally.skipped += 1
                case _:
                    tell_record(record, args.aligned)
                    tally.add(record)
            bar.update(tally.done + tally.failed + tally.skipped - bar.n)
    complain(str(tally))
    return 1 if tally.failed else 0
