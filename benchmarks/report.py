"""Medians and ratios of the rounds, the table on stdout, the JSON file."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch

from osdface_core import __version__
from osdface_core.files import replacing

from .measure import Rounds
from .models import STAGES

MIB = 1024**2


def machine(device: torch.device) -> dict[str, Any]:
    """Where a figure was made."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    about = {"osdface": __version__, "torch": torch.__version__, "device": str(device), "name": name}
    about |= {
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if hasattr(os, "getloadavg"):
        about["load"] = round(os.getloadavg()[0], 2)  # above 1 other programs were running too
    return about


def summary(
    rounds: Rounds, dtype: str, checked: dict[str, float], gmacs: dict[str, float], peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """One record per batch size. Times in ms: `stages` and `total` per face, `pass` for the batch."""
    base = {s: median(r[s] for r in rounds.plain) for s in (*STAGES, "total")}
    records = []
    for count, totals in rounds.totals.items():
        per_face = {s: median(r[s] for r in rounds.stages[count]) / count for s in STAGES}
        total = median(totals) / count
        ratios = [t / count / r["total"] for t, r in zip(totals, rounds.plain, strict=True)]
        records.append(
            {
                "dtype": dtype,
                "batch_size": count,
                "ms_per_face": _rounded(per_face | {"total": total}),
                "ms_per_pass": round(median(totals), 3),
                "faces_per_second": round(1e3 / total, 3),
                "baseline_ms": _rounded(base),
                "ratio": round(median(ratios), 4),
                "ratio_rounds": [round(r, 4) for r in ratios],
                "ratio_stages": {s: round(per_face[s] / base[s], 4) for s in STAGES},
                "tflops": {s: round(2 * gmacs[s] / t, 3) for s, t in (per_face | {"total": total}).items()},
                "of_peak": {s: round(2 * gmacs[s] / per_face[s] / _roof(s, dtype, peaks), 3) for s in STAGES},
                "peak_mib": round(rounds.peak[count] / MIB),
                "beside_baseline": checked,
                "rounds": {"baseline": rounds.plain, "stages": rounds.stages[count], "total": totals},
            }
        )
    return records


def _roof(stage: str, dtype: str, peaks: dict[str, float]) -> float:
    """The prompt side is float32 without TF32; float32 convolutions of the rest may use TF32 on CUDA, and a
    CPU that multiplies half precision no faster computes in float32."""
    if stage in {"vre", "projection"}:
        return peaks["float32"]
    return peaks.get("tf32", peaks[dtype]) if dtype == "float32" else max(peaks[dtype], peaks["float32"])


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    about = result["about"]
    lines = [
        f"osdface {about['osdface']}, torch {about['torch']}, {about['name']} ({about['device']}), "
        f"{about['threads']} threads, model {result['options']['model']}, {result['options']['size']} px",
        f"medians of {result['options']['runs']} rounds; baseline: {result['baseline']}, batch 1",
        "peaks [TFLOP/s]: " + ", ".join(f"{k} {v:g}" for k, v in result["peak_tflops"].items()),
    ]
    head = f"{'':14}" + "".join(f"{s:>12}" for s in (*STAGES, "total"))
    lines += ["", head, _line("GMACs", result["gmacs"], "12.2f")]
    for r in result["results"]:
        lines += [
            "",
            f"{r['dtype']}, {r['engine']}, batch {r['batch_size']}: {r['ms_per_face']['total']:.1f} ms/face, "
            f"{r['faces_per_second']:.2f} faces/s, {r['ratio']:.3f} of the baseline "
            f"(rounds {min(r['ratio_rounds']):.3f}..{max(r['ratio_rounds']):.3f}), peak {r['peak_mib']} MiB",
            _line("baseline ms", r["baseline_ms"], "12.2f"),
            _line("ms/face", r["ms_per_face"], "12.2f"),
            _line("ratio", r["ratio_stages"] | {"total": r["ratio"]}, "12.3f"),
            _line("TFLOP/s", r["tflops"], "12.3f"),
            _line("of peak", r["of_peak"], "12.1%"),
            "beside the baseline: at most {max_levels:g} of 255 levels, mean {mean_levels:g}, "
            "tokens kept {tokens_kept:.1%}".format(**r["beside_baseline"]),
        ]
    return "\n".join(lines)


def save(result: dict[str, Any], path: Path) -> None:
    """Write the JSON whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _line(label: str, values: dict[str, float], form: str) -> str:
    return f"{label:14}" + "".join(
        f"{values[s]:{form}}" if s in values else f"{'':12}" for s in (*STAGES, "total")
    )


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 3) for k, v in values.items()}
