"""Clocks, rounds, counted work and measured peaks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from osdface_core.models.vre import PromptEncoder
from osdface_core.pipeline import FacePipeline

from .memory import peak_bytes, reset_peak
from .models import Parts, Plain

Times = dict[str, float]  # stage: [ms]


class Clock:
    """Marks along one pass, read after it: CUDA events (no waiting inside) or the CPU's clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self.marks: list[Any] = []
        _wait(device)
        self._now()

    def mark(self, name: str) -> None:
        self.names.append(name)
        self._now()

    def read(self) -> Times:
        """[ms] from each mark to the one before."""
        _wait(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.device.type == "cuda":
            spans = [a.elapsed_time(b) for a, b in pairs]
        else:
            spans = [(b - a) * 1e3 for a, b in pairs]
        return dict(zip(self.names, spans, strict=True))

    def _now(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
            return
        _wait(self.device)  # MPS has no events across stages; the wait there is part of what is shown
        self.marks.append(time.perf_counter())


@dataclass
class Rounds:
    """All rounds of one dtype: the baseline's and ours by batch size; [ms] per pass."""

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
        before: bytes on the device that are not the pipeline's.
    """
    device, result = pipeline.device, Rounds()
    one = next(iter(faces.values()))[:1]
    for count, batch in faces.items():
        reset_peak(device)
        for _ in range(warm_ups):
            total(pipeline, batch)
        result.peak[count] = peak_bytes(device) - before  # with what an engine takes when it starts
        stages(pipeline, batch)
    for _ in range(warm_ups - 1):  # the comparison ran it once
        plain_times(plain, one)
    for i in range(runs):
        result.plain.append(plain_times(plain, one))
        for count, batch in faces.items():
            reset_peak(device)
            result.totals.setdefault(count, []).append(total(pipeline, batch))
            result.peak[count] = max(result.peak[count], peak_bytes(device) - before)
            result.stages.setdefault(count, []).append(stages(pipeline, batch))
        last = ", ".join(f"batch {c} {t[-1] / c:.1f} ms/face" for c, t in result.totals.items())
        say(f"round {i + 1}/{runs}: baseline {result.plain[-1]['total']:.1f} ms, {last}")
    return result


def plain_times(plain: Plain, faces: Tensor) -> Times:
    clock = Clock(faces.device)
    plain(faces, clock.mark)
    times = clock.read()
    return times | {"total": sum(times.values())}


def total(pipeline: FacePipeline, faces: Tensor) -> float:
    """`pipeline.restore` as users call it, [ms]."""
    clock = Clock(faces.device)
    pipeline.restore(faces, batch_size=len(faces))
    clock.mark("total")
    return clock.read()["total"]


@torch.inference_mode()
def stages(pipeline: FacePipeline, faces: Tensor) -> Times:
    """The same work one stage after the other (`restore` lets the VRE and the encoder overlap on CUDA)."""
    clock = Clock(faces.device)
    signed = faces * 2.0 - 1.0
    encoder = PromptEncoder(pipeline.vre, pipeline.projection)
    tokens = encoder.vre.tokens(signed)
    clock.mark("vre")
    prompt = encoder.project(tokens)
    clock.mark("projection")
    latent = pipeline.one_step.encode(signed)
    clock.mark("encode")
    restored = pipeline.one_step.denoise(latent, prompt)
    clock.mark("unet")
    pipeline.one_step.decode(restored, signed).clamp(-1.0, 1.0)
    clock.mark("decode")
    return clock.read()


@torch.inference_mode()
def compare(plain: Plain, pipeline: FacePipeline, faces: Tensor) -> dict[str, float]:
    """How far our result is from the baseline's on the same face, both without sampling."""
    expected = plain(faces, lambda _: None, "mode")
    got = pipeline.restore(faces, batch_size=len(faces))
    levels = (got * 255).round() - (expected * 255).round()
    kept = (pipeline.vre(faces * 2.0 - 1.0) == plain.prompt_side(faces * 2.0 - 1.0)).all(-1).float().mean()
    return {
        "max_levels": float(levels.abs().max()),
        "mean_levels": round(float(levels.abs().mean()), 4),
        "tokens_kept": round(float(kept), 4),
    }


class _Method(nn.Module):
    """A module's method as `forward`, so that it can run on weights without storage."""

    def __init__(self, module: Any, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Any) -> Any:
        return getattr(self.module, self.method)(*args)


@torch.no_grad()
def gmacs(parts: Parts, side: int) -> dict[str, float]:
    """Multiply-adds of one face by stage [10^9], counted without computing anything (meta tensors)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    codec, unet, cfg = parts.backbone.codec, parts.backbone.predictor, parts.config
    image = torch.empty(1, 3, side, side, device="meta")
    latent = torch.empty(1, cfg.codec.latent_channels, side // 8, side // 8, device="meta")
    codes = torch.empty(1, cfg.vre.tokens, cfg.vre.z_channels, device="meta")
    prompt = torch.empty(1, cfg.vre.tokens, cfg.projection.out, device="meta")
    calls = {
        "vre": (parts.prompt_encoder.vre, "forward", (image,)),
        "projection": (parts.prompt_encoder.projection, "forward", (codes,)),
        "encode": (codec, "encode", (image,)),
        "unet": (unet, "forward", (latent, cfg.timestep, prompt)),
        "decode": (codec, "decode", (latent, image)),
    }
    counted: dict[str, float] = {}
    for name, (module, method, inputs) in calls.items():
        runner = _Method(module, method)
        weights = {
            k: torch.empty_like(v, device="meta") for k, v in runner.state_dict(keep_vars=True).items()
        }
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            torch.func.functional_call(runner, weights, inputs)
        counted[name] = round(counter.get_total_flops() / 2e9, 3)
    return counted | {"total": round(sum(counted.values()), 3)}


def peaks(device: torch.device, dtypes: list[torch.dtype]) -> dict[str, float]:
    """Best of some large matrix products per precision [TFLOP/s]: the roof that stages are held against."""
    wanted = list(dict.fromkeys([torch.float32, *dtypes]))
    found = {str(d).removeprefix("torch."): _matmul_tflops(device, d) for d in wanted}
    if device.type == "cuda":  # what float32 convolutions may use by default
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        found["tf32"] = _matmul_tflops(device, torch.float32)
        torch.set_float32_matmul_precision(before)
    return found


def _matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        clock = Clock(device)
        torch.matmul(a, b)
        clock.mark("product")
        best = min(best, clock.read()["product"])
    return round(2.0 * side**3 / best / 1e9, 3)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
