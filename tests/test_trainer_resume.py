"""A run killed with SIGKILL at any moment and started again ends with the same bits as one left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
LONGER = (
    "vre.hq.steps=8",
    "vre.lq.steps=8",
    "vre.assoc.steps=8",
    "run.checkpoint_every=2",
    "run.report=false",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]


def command(faces: Path, folder: Path, extra: Sequence[str] = ()) -> list[str]:
    overrides = (f"data.train={faces}", f"run.dir={folder}", *LONGER, *extra)
    sets = [word for assignment in overrides for word in ("--set", assignment)]
    return [sys.executable, "-m", "osdface_trainer", "train", "vre", "smoke", "--quiet", *sets]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start(faces: Path, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(faces, folder), cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> str:
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


def steps_done(folder: Path) -> int:
    """Newest checkpoint on the disk, also a partial one."""
    names = [path.name.rsplit("_", 1)[-1] for path in (folder / "vre/checkpoints").glob("*_*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def kill_after(process: "subprocess.Popen[str]", folder: Path, step: int, delay: float) -> None:
    """SIGKILL `delay` seconds after the first trace of a checkpoint of `step`."""
    while process.poll() is None and steps_done(folder) < step:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_runs_end_with_the_same_bits(tiny_faces: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    reference = start(tiny_faces, whole)
    draw = random.Random(int.from_bytes(os.urandom(4)))
    killed = []
    for step in (3, 11):
        process = start(tiny_faces, broken)
        kill_after(process, broken, step, draw.uniform(0, 0.3))
        killed.append(process.returncode)
    assert killed[0] == -signal.SIGKILL  # the second may be too late on a fast machine
    last = start(tiny_faces, broken)
    finish(reference)
    assert "done at step 24 of 24" in finish(last)
    for name in ("vre/export.safetensors", "export.safetensors"):
        a, b = load_file(whole / name), load_file(broken / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    a, b = (
        load_file(next((run / "vre/checkpoints/step_00000024").glob("*.safetensors")))
        for run in (whole, broken)
    )
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_sigterm_finishes_the_step_and_saves(tiny_faces: Path, tmp_path: Path) -> None:
    process = start(tiny_faces, tmp_path)
    while process.poll() is None and steps_done(tmp_path) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 130 and "interrupted at step" in output
    reached = int(output.split("interrupted at step ")[1].split()[0])
    assert (tmp_path / f"vre/checkpoints/step_{reached:08d}/state.json").is_file()
