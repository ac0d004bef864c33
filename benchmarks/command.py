"""Arguments of `osdface bench`, the order of its measurements, and the JSON they become."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from osdface_core.choices import DetectorName, EngineName
from osdface_core.devices import TORCH_DTYPES, pick_device, pick_dtype
from osdface_core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from osdface_core.pipeline import FacePipeline

# Passes before anything counts (cuDNN picks its kernels, the allocator fills); 1 elsewhere.
WARM_UPS = {"cuda": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `osdface bench` on `parser`."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model", default="mini", metavar="mini|PATH", help="a checkpoint or a released folder (mini)"
    )
    model.add_argument(
        "--full-size",
        action="store_true",
        help="the released model's sizes with random weights; needs no files",
    )
    parser.add_argument(
        "--base", metavar="PATH", help="Stable Diffusion 2.1-base, for checkpoints that are a LoRA"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype", type=_names, default=["auto"], metavar="LIST", help="of auto, fp32, bf16, fp16"
    )
    parser.add_argument(
        "--batch-size", type=_counts, default=[1], metavar="LIST", help="faces at once, e.g. 1,8"
    )
    parser.add_argument(
        "--engine",
        type=_engines,
        metavar="LIST",
        help=f"of {', '.join(get_args(EngineName))}; default eager,graphs on CUDA, else eager",
    )
    parser.add_argument("--runs", type=_count, default=5, metavar="N", help="rounds; medians over them (5)")
    parser.add_argument("--size", type=_side, default=512, metavar="PX", help="side of a face (512)")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="a checkout of the released inference code, timed beside ours",
    )
    parser.add_argument(
        "--codec-dir",
        metavar="DIR",
        help="ours with TAESD from there (`restore --codec taesd`), the baseline without",
    )
    kind = parser.add_argument_group("whole photos, in place of the model alone")
    what = kind.add_mutually_exclusive_group()
    what.add_argument(
        "--photos",
        nargs="+",
        metavar="INPUT",
        help="seconds per stage of these photos, and how long the model waits",
    )
    what.add_argument("--memory", nargs="+", metavar="INPUT", help="memory of the process photo by photo")
    what.add_argument("--cost", action="store_true", help="how seconds grow with faces, pixels and batch")
    what.add_argument(
        "--peak", action="store_true", help="most memory that a process takes which only restores a face"
    )
    kind.add_argument("--plot", type=Path, metavar="PNG", help="a picture of --memory or --cost")
    kind.add_argument("--max-faces", type=_count, metavar="N", help="at most so many of each photo")
    kind.add_argument("--detector", choices=get_args(DetectorName), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured, also each round")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON, return 0.

    Raises:
        ConfigError: the reference is no checkout, or does not fit the model; TAESD does not.
        CheckpointError: the model or TAESD cannot be loaded.
    """
    # Here, so that `osdface bench --help` answers at once.
    from . import measure, models, report

    say = (lambda _: None) if args.quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    start = time.perf_counter()
    device = pick_device(args.device)
    dtypes = {str(d).removeprefix("torch."): d for d in (pick_dtype(name, device) for name in args.dtype)}
    say(f"building the model on {device} …")
    if args.peak:
        return _peak(args, device, next(iter(dtypes.values())))
    parts = models.full_size(device) if args.full_size else models.from_file(args.model, args.base, device)
    if args.photos or args.memory or args.cost:
        return _photos(args, models.whole(parts, next(iter(dtypes.values()))), say)
    plain = models.plain(parts, args.reference)
    parts = models.with_taesd(parts, args.codec_dir) if args.codec_dir else parts
    result: dict[str, Any] = {
        "about": report.machine(device),
        "options": {
            "model": "full-size" if args.full_size else str(args.model),
            "runs": args.runs,
            "size": args.size,
        },
        "baseline": plain.name,
        "gmacs": measure.gmacs(parts, args.size),
        "peak_tflops": measure.peaks(device, list(dtypes.values())),
        "results": [],
    }
    say(f"built after {time.perf_counter() - start:.1f} s; peaks {result['peak_tflops']} TFLOP/s")
    warm_ups = WARM_UPS.get(device.type, 1)
    usual: list[EngineName] = ["eager", "graphs"] if device.type == "cuda" else ["eager"]
    engines = args.engine or usual
    faces = {b: models.faces(b, args.size, device) for b in args.batch_size}
    for (name, dtype), engine in itertools.product(dtypes.items(), engines):
        say(f"{name}, {engine}: warming up …")
        pipeline, before = models.ours(parts, dtype)
        pipeline.use_engine(engine)
        checked = measure.compare(plain, pipeline, models.faces(1, args.size, device))
        rounds = measure.rounds(plain, pipeline, faces, args.runs, warm_ups, before, say)
        for record in report.summary(rounds, name, checked, result["gmacs"], result["peak_tflops"]):
            result["results"].append({"engine": engine, **record})
        del pipeline
        if args.json:  # after each, so that a run cut short leaves what it measured
            report.save(result, args.json)
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(report.table(result))
    if args.json:
        report.save(result, args.json)
    return 0


def _peak(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> int:
    """`--peak`, with the first of the engines and precisions: no baseline, no second copy of the weights."""
    from . import measure, memory, models

    parts = (
        models.full_size(device, dtype) if args.full_size else models.from_file(args.model, args.base, device)
    )
    pipeline = models.whole(parts, dtype)
    pipeline.use_engine(args.engine[0] if args.engine else "auto")
    marks = [memory.peak_bytes(device)]
    for _ in range(args.runs):
        measure.total(pipeline, models.faces(1, args.size, device))
        marks.append(memory.peak_bytes(device))
    gib = [f"{mark / 1024**3:.2f}" for mark in marks]
    print(f"peak GiB: {gib[0]} before the first face, then face by face {', '.join(gib[1:])}")
    return 0


def _photos(args: argparse.Namespace, pipeline: FacePipeline, say: Callable[[str], None]) -> int:
    """`--photos`, `--memory` or `--cost`, with the first of the engines, precisions and batch sizes."""
    from . import cost, photos, plots, report

    if args.plot and args.photos:
        raise ConfigError("--plot draws --memory or --cost; leave it out with --photos")
    pipeline.use_engine(args.engine[0] if args.engine else "auto")
    options = {"detector": args.detector, "max_faces": args.max_faces}
    if args.photos:
        result = photos.folder(pipeline, args.photos, options, args.runs, say)
        print(photos.folder_table(result))
    elif args.memory:
        result = photos.memory(pipeline, args.memory, options, say)
        print(photos.memory_table(result))
    else:
        result = cost.measure(pipeline, args.runs, say)
        print(cost.table(result))
    if args.plot:
        (plots.memory if args.memory else plots.cost)(result, args.plot)
    if args.json:
        report.save({"about": report.machine(pipeline.device), **result}, args.json)
    return 0


def _names(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    if unknown := [n for n in names if n not in {"auto", *TORCH_DTYPES}]:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; use auto, {', '.join(TORCH_DTYPES)}")
    return names


def _engines(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    if unknown := [n for n in names if n not in get_args(EngineName)]:
        raise argparse.ArgumentTypeError(
            f"unknown {', '.join(unknown)}; use {', '.join(get_args(EngineName))}"
        )
    return names


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _side(text: str) -> int:
    value = int(text)
    if value < 64 or value % 64:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 64")
    return value
