"""`osdface bench`: what one face costs, beside the plain pipeline."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from osdface_core.cli.arguments import add_options
from osdface_core.console import complain
from osdface_core.devices import pick_device, pick_dtype
from osdface_core.errors import OptionError
from osdface_core.options import LoadOptions, Option, RestoreOptions, options_of

# Passes before anything counts (cuDNN picks its kernels, the allocator fills); 1 elsewhere.
WARM_UPS = {"cuda": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface bench` on `parser`."""
    model = parser.add_mutually_exclusive_group()
    add_options(model, LoadOptions, "source")
    model.add_argument(
        "--full-size", action="store_true", help="the released sizes with random weights; needs no files"
    )
    add_options(parser, LoadOptions, "base", "device")
    load, restore = options_of(LoadOptions), options_of(RestoreOptions)
    several(parser, "--dtype", load["dtype"], ["auto"])
    several(parser, "--engine", load["engine"], ["auto"])
    several(parser, "--batch-size", restore["batch_size"], [1])
    parser.add_argument("--runs", type=_count, default=5, metavar="N", help="rounds; medians over them (5)")
    parser.add_argument("--size", type=_side, default=512, metavar="PX", help="side of a face (512)")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="a checkout of the released code, timed beside ours"
    )
    parser.add_argument(
        "--peak", action="store_true", help="only the most memory that restoring a face takes; no baseline"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured, also each round")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON, return 0.

    Raises:
        ConfigError: the reference is no checkout, or does not fit the model.
        CheckpointError: the model cannot be loaded.
    """
    # Here, so that `osdface bench --help` answers at once.
    import torch

    from . import measure, memory, models, report

    say = (lambda _: None) if args.quiet else complain
    device = pick_device(args.device)
    dtypes = [pick_dtype(name, device) for name in args.dtype]
    build = partial(models.from_file, args.source, args.base, device)
    if args.full_size:
        # For the peak no float32 weights come first.
        build = partial(models.full_size, device, dtypes[0] if args.peak else torch.float32)
    say(f"building the model on {device} …")
    if args.peak:
        pipeline = models.ours(build(), dtypes[0], args.engine[0])
        peaks = [f"{peak / 1024**3:.2f}" for peak in memory.of_one_face(pipeline, args.size, args.runs)]
        print(f"peak GiB: {peaks[0]} before the first face, then face by face {', '.join(peaks[1:])}")
        return 0
    plain = models.plain(build(), args.reference)
    result: dict[str, Any] = {
        "about": report.machine(device),
        "model": plain.parts.config.name,
        "runs": args.runs,
        "size": args.size,
        "baseline": plain.name,
        "gmacs": measure.gmacs(plain.parts, args.size),
        "peak_tflops": measure.peak_tflops(device, dtypes),
        "results": [],
    }
    faces = {count: models.random_faces(count, args.size, device) for count in args.batch_size}
    for dtype, engine in [(d, e) for d in dtypes for e in args.engine]:
        before = memory.allocated_bytes(device)
        pipeline = models.ours(build(), dtype, engine)
        say(f"{pipeline!r}: warming up …")
        checked = measure.compare(plain, pipeline, models.random_faces(1, args.size, device))
        warm_ups = WARM_UPS.get(device.type, 1)
        found = measure.rounds(plain, pipeline, faces, args.runs, warm_ups, before, say)
        result["results"] += measure.records(found, pipeline, checked, result["gmacs"])
        del pipeline
        if args.json:  # after each, so that a run cut short leaves what it measured
            report.save(result, args.json)
    print(report.table(result))
    return 0


def several(parser: argparse.ArgumentParser, flag: str, option: Option, default: list[Any]) -> None:
    """Declare an option of the table that takes several values, separated by commas."""

    def read(text: str) -> list[Any]:
        try:
            return [option.parse(part.strip()) for part in text.split(",")]
        except OptionError as error:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {error.expected}") from error

    parser.add_argument(
        flag,
        type=read,
        default=default,
        metavar="LIST",
        help=f"Several by commas. {option.help} ({default[0]})",
    )


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _side(text: str) -> int:
    if (value := int(text)) < 64 or value % 64:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 64")
    return value
