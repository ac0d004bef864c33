"""Whole photos: seconds per stage, how long the model waits, and memory over a long folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from osdface_core.cli.batch import FileRestorer, Plan, Work, one_by_one, overlapped
from osdface_core.cli.inputs import Guard, Job, plan
from osdface_core.errors import ConfigError
from osdface_core.options import DetectOptions, pick
from osdface_core.pipeline import FacePipeline

from .memory import resident_bytes

STEPS = ("read", "detect", "model", "paste", "write")
MIB = 1024**2
Say = Callable[[str], None]


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


def run_pass(pipeline: FacePipeline, jobs: Sequence[Job], options: dict[str, Any], runner: Any) -> Pass:
    """Restore all photos with `one_by_one` or `overlapped`. Raises what a photo failed with."""
    how, guard = Plan(pick(DetectOptions, options)), Guard(job.source for job in jobs)
    steps, result = _Watched(pipeline, how, guard), Pass()

    def tell(job: Job, record: Any) -> None:
        if isinstance(record, Exception):
            raise record
        result.records.append(record)
        result.resident.append(resident_bytes() / MIB)

    start = time.perf_counter()
    runner(jobs, steps, tell)
    result.seconds = time.perf_counter() - start
    if steps.spans:
        whole = steps.spans[-1][1] - steps.spans[0][0]
        result.idle = 1.0 - sum(end - begin for begin, end in steps.spans) / whole
    return result


def folder(
    pipeline: FacePipeline, inputs: Sequence[str], options: dict[str, Any], runs: int, say: Say
) -> dict[str, Any]:
    """Alternate the two ways through the same photos; one pass over the first photo warms up."""
    with tempfile.TemporaryDirectory() as out:
        jobs = _jobs(inputs, out)
        run_pass(pipeline, jobs[:1], options, one_by_one)
        plain: list[Pass] = []
        side: list[Pass] = []
        for number in range(runs):
            plain.append(run_pass(pipeline, jobs, options, one_by_one))
            side.append(run_pass(pipeline, jobs, options, overlapped))
            say(
                f"round {number + 1}/{runs}: one by one {plain[-1].seconds:.1f} s, "
                f"overlapped {side[-1].seconds:.1f} s, model idle {side[-1].idle:.1%}"
            )
    stages = {s: median(sum(r["stages"][s] for r in p.records) for p in plain) for s in STEPS}
    ratios = [b.seconds / a.seconds for a, b in zip(plain, side, strict=True)]
    return {
        "photos": len(jobs),
        "faces": sum(len(r["faces"]) for r in plain[0].records),
        "megapixels": sum(r["width"] * r["height"] for r in plain[0].records) / 1e6,
        "stages": stages,
        "photo_path": (stages["detect"] + stages["paste"]) / stages["model"],
        "one_by_one": {"seconds": [p.seconds for p in plain], "idle": [p.idle for p in plain]},
        "overlapped": {"seconds": [p.seconds for p in side], "idle": [p.idle for p in side]},
        "ratio": median(ratios),
        "ratios": ratios,
    }


def folder_table(result: dict[str, Any]) -> str:
    """`folder`'s result for people."""
    one, side = result["one_by_one"], result["overlapped"]
    return "\n".join(
        [
            f"{result['photos']} photos, {result['megapixels']:.1f} megapixels, {result['faces']} faces, "
            f"medians of {len(result['ratios'])} rounds",
            "seconds, one by one: " + ", ".join(f"{s} {result['stages'][s]:.2f}" for s in STEPS),
            f"detect, align and paste: {result['photo_path']:.1%} of the model",
            f"one by one {median(one['seconds']):.1f} s, model idle {median(one['idle']):.1%}",
            f"overlapped {median(side['seconds']):.1f} s, model idle {median(side['idle']):.1%}; "
            f"{result['ratio']:.3f} of one by one (rounds {min(result['ratios']):.3f}.."
            f"{max(result['ratios']):.3f})",
        ]
    )


def memory(
    pipeline: FacePipeline, inputs: Sequence[str], options: dict[str, Any], say: Say
) -> dict[str, Any]:
    """The process's memory after each photo of one overlapped pass."""
    with tempfile.TemporaryDirectory() as out:
        jobs = _jobs(inputs, out)
        say(f"{len(jobs)} photos …")
        resident = run_pass(pipeline, jobs, options, overlapped).resident
    tenth = max(1, len(resident) // 10)
    return {
        "photos": len(jobs),
        "resident_mib": [round(value, 1) for value in resident],
        "second_tenth": median(resident[tenth : 2 * tenth] or resident),
        "last_tenth": median(resident[-tenth:]),
    }


def memory_table(result: dict[str, Any]) -> str:
    """`memory`'s result for people."""
    return (
        f"{result['photos']} photos: {result['second_tenth']:.0f} MiB in the second tenth of them, "
        f"{result['last_tenth']:.0f} MiB in the last, at most {max(result['resident_mib']):.0f} MiB"
    )


def _jobs(inputs: Sequence[str], out: str) -> list[Job]:
    jobs, missing = plan(inputs, Path(out))
    if missing or not jobs:
        raise ConfigError("; ".join(f"{m.source}: {m.reason}" for m in missing))
    return jobs
