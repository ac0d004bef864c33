"""Whole photos, one by one and with the steps side by side: seconds per stage, the model's waits, memory.

python -m benchmarks.photos photos/ --engine native --max-faces 2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from osdface_core.cli.arguments import add_options
from osdface_core.cli.batch import FileRestorer, Plan, Work, one_by_one, overlapped
from osdface_core.cli.inputs import Guard, Job, plan
from osdface_core.options import DetectOptions, LoadOptions, options_of, pick
from osdface_core.pipeline import FacePipeline

from .memory import resident_bytes
from .report import machine, save

STEPS = ("read", "detect", "model", "paste", "write")


@dataclass
class Pass:
    """One pass over the photos.

    Attributes:
        seconds: from the first byte read to the last one written.
        idle: share of the time between the model's first start and its last end in which it did not run.
        records: what `FileRestorer.finish` said about each photo.
        resident: memory of the process after each photo [MiB].
    """

    seconds: float = 0.0
    idle: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)


class _Watched(FileRestorer):
    """Remembers when the model ran."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.spans: list[tuple[float, float]] = []

    def restore(self, work: Work) -> Work:
        start = time.perf_counter()
        work = super().restore(work)
        if work.faces:
            self.spans.append((start, time.perf_counter()))
        return work


def run_pass(pipeline: FacePipeline, jobs: Iterable[Job], options: DetectOptions, runner: Any) -> Pass:
    """Restore all photos with `one_by_one` or `overlapped`. Raises what a photo failed with."""
    steps, result = _Watched(pipeline, Plan(options), Guard(job.source for job in jobs)), Pass()

    def tell(job: Job, record: Any) -> None:
        if isinstance(record, Exception):
            raise record
        result.records.append(record)
        result.resident.append(resident_bytes() / 1024**2)

    start = time.perf_counter()
    runner(jobs, steps, tell)
    result.seconds = time.perf_counter() - start
    if steps.spans:
        whole = steps.spans[-1][1] - steps.spans[0][0]
        result.idle = 1.0 - sum(end - begin for begin, end in steps.spans) / whole
    return result


def folder(pipeline: FacePipeline, jobs: Sequence[Job], options: DetectOptions, runs: int) -> dict[str, Any]:
    """Alternate the two ways through the same photos; one pass over the first photo warms up."""
    ways: dict[str, list[Pass]] = {"one by one": [], "side by side": []}
    run_pass(pipeline, jobs[:1], options, one_by_one)
    for _ in range(runs):
        for passes, runner in zip(ways.values(), (one_by_one, overlapped), strict=True):
            passes.append(run_pass(pipeline, jobs, options, runner))
    plain, side = ways.values()
    return {
        "faces": sum(len(r["faces"]) for r in plain[0].records),
        "megapixels": sum(r["width"] * r["height"] for r in plain[0].records) / 1e6,
        "stages": {s: median(sum(r["stages"][s] for r in p.records) for p in plain) for s in STEPS},
        "seconds": {way: [p.seconds for p in passes] for way, passes in ways.items()},
        "idle": {way: median(p.idle for p in passes) for way, passes in ways.items()},
        "ratios": [b.seconds / a.seconds for a, b in zip(plain, side, strict=True)],
        "resident_mib": side[-1].resident,
    }


def table(result: dict[str, Any]) -> str:
    """Lay `folder`'s result out for people."""
    ratios, resident = result["ratios"], result["resident_mib"]
    tenth = max(1, len(resident) // 10)
    lines = [
        f"{len(resident)} photos, {result['megapixels']:.1f} megapixels, {result['faces']} faces, "
        f"medians of {len(ratios)} rounds",
        "seconds, one by one: " + ", ".join(f"{s} {result['stages'][s]:.2f}" for s in STEPS),
    ]
    for way, seconds in result["seconds"].items():
        lines.append(f"{way}: {median(seconds):.1f} s, model idle {result['idle'][way]:.1%}")
    lines.append(f"ratio {median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})")
    early, late = median(resident[tenth : 2 * tenth] or resident), median(resident[-tenth:])
    lines.append(
        f"memory [MiB]: {early:.0f} in the second tenth of the photos, {late:.0f} in the last, "
        f"at most {max(resident):.0f}"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON. Returns 0, or 2 for inputs that are not there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photos, folders or globs")
    add_options(parser, LoadOptions, "source", "base", "device", "dtype", "engine")
    add_options(parser, DetectOptions, "detector", "max_faces")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="rounds; medians over them (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured")
    args = parser.parse_args(argv)
    loading = {name: value for name, value in vars(args).items() if name in options_of(LoadOptions)}
    with tempfile.TemporaryDirectory() as out:
        found, missing = plan(args.inputs, Path(out))
        jobs = list(found)
        if missing or not jobs:
            parser.error("; ".join(f"{m.source}: {m.reason}" for m in missing))
        pipeline = FacePipeline.from_pretrained(**loading)
        result = folder(pipeline, jobs, pick(DetectOptions, vars(args)), args.runs)
    print(table(result))
    if args.json:
        save({"about": machine(pipeline.device), **result}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
