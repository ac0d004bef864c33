"""Where figures were made, the table on stdout, the JSON file."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from osdface_core import __version__
from osdface_core.files import write_text

from .models import STAGES

COLUMNS = (*STAGES, "total")


def machine(device: torch.device) -> dict[str, Any]:
    """Describe where a figure is made; `load` above 1 says that other programs ran, too."""
    cuda = device.type == "cuda"
    return {
        "osdface": __version__,
        "torch": torch.__version__,
        "device": str(device),
        "name": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def table(result: dict[str, Any]) -> str:
    """Lay the figures out for people."""
    about = result["about"]
    lines = [
        f"osdface {about['osdface']}, torch {about['torch']}, {about['name']} ({about['device']}), "
        f"{about['threads']} threads, model {result['model']}, {result['size']} px",
        f"medians of {result['runs']} rounds; baseline: {result['baseline']}, batch 1",
        "peaks [TFLOP/s]: " + ", ".join(f"{k} {v:g}" for k, v in result["peak_tflops"].items()),
        "",
        f"{'':14}" + "".join(f"{s:>12}" for s in COLUMNS),
        _line("GMACs", result["gmacs"], 2),
    ]
    for r in result["results"]:
        lines += [
            "",
            f"{r['dtype']}, {r['engine']}, batch {r['batch_size']}: {r['ms_per_face']['total']:.1f} ms/face, "
            f"{r['faces_per_second']:.2f} faces/s, {r['ratio']:.3f} of the baseline "
            f"(rounds {min(r['ratio_rounds']):.3f}..{max(r['ratio_rounds']):.3f}), peak {r['peak_mib']} MiB",
            _line("baseline ms", r["baseline_ms"], 2),
            _line("ms/face", r["ms_per_face"], 2),
            _line("ratio", r["ratio_stages"] | {"total": r["ratio"]}, 3),
            _line("TFLOP/s", r["tflops"], 3),
            "beside the baseline: at most {max_levels:g} of 255 levels, mean {mean_levels:g}, "
            "tokens kept {tokens_kept:.1%}".format(**r["beside_baseline"]),
        ]
    return "\n".join(lines)


def save(result: dict[str, Any], path: Path) -> None:
    """Write the JSON whole or not at all."""
    write_text(path, json.dumps(result, indent=1) + "\n")


def _line(label: str, values: dict[str, float], digits: int) -> str:
    return f"{label:14}" + "".join(f"{values[s]:12.{digits}f}" for s in COLUMNS)
