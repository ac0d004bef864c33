"""The model alone: rounds of baseline and ours, counted work, measured peaks, and the records they become."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from osdface_core.one_step import OneStepRestorer
from osdface_core.pipeline import FacePipeline

from .memory import peak_bytes, reset_peak
from .models import STAGES, Parts, Plain, by_stages

Times = dict[str, float]
"""Stage to milliseconds."""
MIB = 1024**2
KINDS = {"convolution": "convolutions", "addmm": "linear layers", "mm": "linear layers"}
PRODUCTS = "products"
"""All other work is products of two activations: attention, distances to the codes."""


def median_seconds(call: Callable[[], Any], runs: int) -> float:
    """Time `call`, which has to wait for its device itself; the median of `runs` after one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times[1:])


class Clock:
    """Marks along one pass; the device is waited for at each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, float]] = []
        self.mark("")

    def mark(self, name: str) -> None:
        """Note that `name` ends here."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()
        self.marks.append((name, time.perf_counter()))

    def read(self) -> Times:
        """Return [ms] from each mark to the one before, and in total."""
        times = {name: 1e3 * (end - start) for (_, start), (name, end) in pairwise(self.marks)}
        return times | {"total": sum(times.values())}


@dataclass
class Rounds:
    """All rounds of one dtype and engine: the baseline's and ours by batch size; [ms] per pass."""

    plain: list[Times] = field(default_factory=list)
    stages: dict[int, list[Times]] = field(default_factory=dict)
    totals: dict[int, list[float]] = field(default_factory=dict)
    peak: dict[int, int] = field(default_factory=dict)  # [bytes]


def rounds(
    plain: Plain,
    pipeline: FacePipeline,
    faces: dict[int, Tensor],
    runs: int,
    warm_ups: int,
    before: int,
    say: Callable[[str], None],
) -> Rounds:
    """Alternate the baseline and ours, so that a change of the machine's mood hits both.

    Args:
        faces: batch size to faces on the device, in [0, 1].
        warm_ups: passes that do not count.
        before: bytes on the device that are not the pipeline's.
    """
    device, result = pipeline.device, Rounds()
    one = next(iter(faces.values()))[:1]
    for i in range(-warm_ups, runs):
        base = _timed(device, lambda clock: plain(one, clock.mark))
        if i >= 0:
            result.plain.append(base)
        for count, batch in faces.items():
            reset_peak(device)
            total = whole_pass(pipeline, batch)
            # Warm-ups, too: with what an engine takes when it starts.
            result.peak[count] = max(result.peak.get(count, 0), peak_bytes(device) - before)
            stages = stage_times(pipeline, batch)
            if i >= 0:
                result.totals.setdefault(count, []).append(total)
                result.stages.setdefault(count, []).append(stages)
        if i >= 0:
            last = ", ".join(f"batch {c} {t[-1] / c:.1f} ms/face" for c, t in result.totals.items())
            say(f"round {i + 1}/{runs}: baseline {base['total']:.1f} ms, {last}")
    return result


def whole_pass(pipeline: FacePipeline, faces: Tensor) -> float:
    """Time `pipeline.restore` as users call it [ms]."""
    return _timed(faces.device, lambda _: pipeline.restore(faces, batch_size=len(faces)), "total")["total"]


def stage_times(pipeline: FacePipeline, faces: Tensor) -> Times:
    """Time the same work stage by stage (`restore` lets the VRE and the encoder overlap on CUDA)."""
    step, encoder = pipeline.one_step, pipeline.prompt_encoder
    assert encoder is not None
    tokens = encoder.vre.tokens
    return _timed(faces.device, lambda clock: by_stages(step, tokens, encoder.project, faces, clock.mark))


def _timed(device: torch.device, call: Callable[[Clock], Any], last: str | None = None) -> Times:
    clock = Clock(device)
    call(clock)
    if last:
        clock.mark(last)
    return clock.read()


@torch.inference_mode()
def compare(plain: Plain, pipeline: FacePipeline, faces: Tensor) -> dict[str, float]:
    """Measure how far our result is from the baseline's on the same face, both without sampling."""
    expected = plain(faces, lambda _: None, "mode")
    got = pipeline.restore(faces, batch_size=len(faces))
    levels = (got * 255).round() - (expected * 255).round()
    kept = (pipeline.vre(faces * 2.0 - 1.0) == plain.prompt_side(faces * 2.0 - 1.0)).all(-1).float().mean()
    return {
        "max_levels": float(levels.abs().max()),
        "mean_levels": round(float(levels.abs().mean()), 4),
        "tokens_kept": round(float(kept), 4),
    }


def terms(parts: Parts, side: int) -> dict[str, Counter[str]]:
    """Count the multiply-adds of one face by stage and kind; the meta device computes nothing."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    found: dict[str, Counter[str]] = {}
    face = torch.zeros(1, 3, side, side, device=parts.device)
    step, encoder = OneStepRestorer(parts.config, parts.backbone), parts.prompt_encoder
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):

        def mark(stage: str) -> None:
            so_far: Counter[str] = Counter()
            for operation, flops in counter.get_flop_counts().get("Global", {}).items():
                so_far[KINDS.get(str(operation).removeprefix("aten."), PRODUCTS)] += flops // 2
            found[stage] = so_far - sum(found.values(), Counter[str]())

        by_stages(step, encoder.vre.tokens, encoder.project, face, mark)
    return found


def gmacs(parts: Parts, side: int) -> Times:
    """Count the multiply-adds of one face by stage [10^9]."""
    counted = {stage: one.total() / 1e9 for stage, one in terms(parts, side).items()}
    return {stage: round(n, 3) for stage, n in counted.items()} | {"total": round(sum(counted.values()), 3)}


def peak_tflops(device: torch.device, dtypes: list[torch.dtype]) -> dict[str, float]:
    """Take the best of some large matrix products per precision: the roof to hold stages against."""
    wanted = list(dict.fromkeys([torch.float32, *dtypes]))
    found = {str(d).removeprefix("torch."): _product_tflops(device, d) for d in wanted}
    if device.type == "cuda":  # what float32 convolutions may use by default
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        found["tf32"] = _product_tflops(device, torch.float32)
        torch.set_float32_matmul_precision(before)
    return found


def _product_ms(device: torch.device, dtype: torch.dtype, side: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return min(_timed(device, lambda _: torch.matmul(a, b), "product")["total"] for _ in range(4))


def _product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    best = _product_ms(device, dtype, side := 512)
    if best < 100:  # or the CPU lacks this precision, and the large product would take a minute
        best = _product_ms(device, dtype, side := 8192 if device.type == "cuda" else 2048)
    return round(2.0 * side**3 / best / 1e9, 3)


def records(
    found: Rounds, pipeline: FacePipeline, checked: dict[str, float], work: Times
) -> list[dict[str, Any]]:
    """Sum the rounds up: one record per batch size, times in ms, `peak_mib` in MiB.

    Args:
        checked: what `compare` returned.
        work: what `gmacs` returned.
    """
    base = _medians(found.plain)
    result = []
    for count, totals in found.totals.items():
        per_face = {s: t / count for s, t in _medians(found.stages[count]).items()}
        per_face["total"] = median(totals) / count
        ratios = [t / count / r["total"] for t, r in zip(totals, found.plain, strict=True)]
        result.append(
            {
                "dtype": str(pipeline.dtype).removeprefix("torch."),
                "engine": pipeline.engine.name,
                "batch_size": count,
                "ms_per_face": per_face,
                "faces_per_second": 1e3 / per_face["total"],
                "baseline_ms": base,
                "ratio": median(ratios),
                "ratio_rounds": ratios,
                "ratio_stages": {s: per_face[s] / base[s] for s in STAGES},
                "tflops": {s: 2 * work[s] / t for s, t in per_face.items()},
                "peak_mib": round(found.peak[count] / MIB),
                "beside_baseline": checked,
                "rounds": {"baseline": found.plain, "stages": found.stages[count], "total": totals},
            }
        )
    return result


def _medians(passes: list[Times]) -> Times:
    return {s: median(p[s] for p in passes) for s in (*STAGES, "total")}
