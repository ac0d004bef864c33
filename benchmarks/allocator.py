"""What reusing freed memory gives: faces of the embedded model with and without, process beside process.

python -m benchmarks.allocator --rounds 5 --engine native
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from typing import get_args

import torch

from osdface_core import OSDFacePipeline
from osdface_core.choices import EngineName
from osdface_core.cli.allocator import keep_freed_memory

from .measure import median_seconds
from .memory import peak_bytes
from .models import random_faces

CPU = torch.device("cpu")
Round = tuple[float, float]
"""Seconds of a face, peak of the process [MiB]."""


def one_process(kept: bool, engine: EngineName, faces: int) -> Round:
    """Time a face, the median of `faces`, in this process."""
    if kept:
        keep_freed_memory()
    pipeline = OSDFacePipeline.from_pretrained("mini", device=CPU, engine=engine, dtype=torch.float32)
    face = random_faces(1, 512, CPU)
    return median_seconds(lambda: pipeline.restore(face), faces), peak_bytes(CPU) / 2**20


def in_its_own(kept: bool, engine: EngineName, faces: int) -> Round:
    """Start `one_process` as another process: what glibc was told cannot be taken back."""
    command = [sys.executable, "-m", "benchmarks.allocator", "--engine", engine, "--faces", str(faces)]
    command += ["--only", "kept" if kept else "returned"]
    seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(peak)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both in turn, and print medians and their ratio. Returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (5)")
    parser.add_argument("--faces", type=int, default=3, help="faces of a process, after one to warm up (3)")
    parser.add_argument("--engine", choices=get_args(EngineName), default="auto")
    parser.add_argument("--only", choices=("kept", "returned"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.only:
        print(*one_process(args.only == "kept", args.engine, args.faces))
        return 0
    rounds: dict[bool, list[Round]] = {False: [], True: []}
    for _ in range(args.rounds):
        for kept, results in rounds.items():
            results.append(in_its_own(kept, args.engine, args.faces))
    (before, low), (after, high) = (
        [median(column) for column in zip(*results, strict=True)] for results in rounds.values()
    )
    print(f"memory returned: {before:.2f} s a face, peak {low:.0f} MiB")
    print(f"memory kept: {after:.2f} s a face ({after / before:.2f} of it), peak {high:.0f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
