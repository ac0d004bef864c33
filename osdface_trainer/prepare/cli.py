"""The arguments of `osdface prepare`, and what is printed at the end."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

from osdface_core.console import say
from osdface_core.errors import OSDFaceError

from .photos import FaceFormat, MultiFaces, PrepareOptions

EXAMPLE = "example: osdface prepare photos/ faces/ --identity mobilefacenet.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface prepare` on `parser`."""
    parser.epilog = EXAMPLE
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of photos, searched recursively")
    parser.add_argument("target", type=Path, metavar="DST", help="folder for faces and manifest")
    finding = parser.add_argument_group("which faces")
    finding.add_argument("--detector", default="auto", help="as in osdface restore (auto)")
    finding.add_argument("--detector-dir", metavar="DIR", help="where the detector's weights are")
    finding.add_argument("--min-face", type=float, default=128, metavar="PX", help="smallest face (128)")
    finding.add_argument(
        "--min-sharpness", type=float, default=0.2, metavar="F", help="least sharpness (0.2)"
    )
    finding.add_argument(
        "--min-coverage",
        type=float,
        default=0.8,
        metavar="F",
        help="least part of a crop inside its photo (0.8)",
    )
    finding.add_argument(
        "--multi-faces", choices=get_args(MultiFaces), default="all", help="photos with several faces (all)"
    )
    finding.add_argument(
        "--duplicates",
        type=int,
        default=16,
        metavar="BITS",
        help="faces this alike count once; -1 keeps all (16)",
    )
    people = parser.add_argument_group("people and hold-out")
    people.add_argument(
        "--holdout",
        type=float,
        default=0.05,
        metavar="F",
        help="share of people (of one: of photos) held out (0.05)",
    )
    people.add_argument(
        "--identity", type=Path, metavar="FILE",
        help="face network that tells people apart (mobilefacenet.pt in torch's cache)",
    )  # fmt: skip
    people.add_argument(
        "--person", type=Path, metavar="PHOTO", action="append", default=[],
        help="keep this person's faces only; may be given several times",
    )  # fmt: skip
    people.add_argument(
        "--same-person",
        type=float,
        default=0.65,
        metavar="F",
        help="cosine from which two faces are one person",
    )
    people.add_argument("--seed", type=int, default=0, help="of the hold-out")
    writing = parser.add_argument_group("writing")
    writing.add_argument("--size", type=int, default=512, metavar="PX", help="side of a face (512)")
    writing.add_argument("--format", choices=get_args(FaceFormat), default="png")
    writing.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    writing.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Prepare, and print what came out.

    Returns: 0, also when photos could not be read: they are counted and named. 1 if none could.
    Raises:
        OSDFaceError: no photos, no detector, or an option out of range.
    """
    from osdface_core.devices import pick_device

    from .run import prepare

    options = PrepareOptions(**{field.name: getattr(args, field.name) for field in fields(PrepareOptions)})
    try:
        summary = prepare(
            args.source, args.target, options, device=pick_device(args.device), duplicates=args.duplicates,
            holdout=args.holdout, seed=args.seed, identity=args.identity, same_person=args.same_person,
            person=args.person,
            progress=not args.quiet and sys.stderr.isatty(),
        )  # fmt: skip
    except OSError as error:
        raise OSDFaceError(f"{args.target} cannot be written: {error}") from error
    say("\n".join(summary.lines()))
    return 1 if summary.unreadable and not (summary.faces or summary.rejected) else 0
