"""A run killed with SIGKILL at any moment and started again ends with the same bits as one left alone."""

import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import processes

LONGER = (
    "vre.hq.steps=4",
    "vre.lq.steps=4",
    "vre.assoc.steps=4",
    "run.checkpoint_every=2",
    "run.report=false",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]


def start(faces: Path, folder: Path) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    overrides = (f"data.train={faces}", f"run.dir={folder}", *LONGER)
    return processes.start(processes.command, folder / "said.txt", processes.train("vre", *overrides))


def steps_done(folder: Path) -> int:
    """Newest checkpoint on the disk, also a partial one."""
    names = [path.name.rsplit("_", 1)[-1] for path in (folder / "vre/checkpoints").glob("*_*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def kill_after(process: BaseProcess, folder: Path, step: int, delay: float) -> None:
    """SIGKILL `delay` seconds after the first trace of a checkpoint of `step`."""
    while process.is_alive() and steps_done(folder) < step:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.join()


def test_killed_runs_end_with_the_same_bits(tiny_faces: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    reference = start(tiny_faces, whole)
    draw = random.Random(int.from_bytes(os.urandom(4)))
    killed = []
    for step in (3, 7):
        process = start(tiny_faces, broken)
        kill_after(process, broken, step, draw.uniform(0, 0.3))
        killed.append(process.exitcode)
    assert killed[0] == -signal.SIGKILL  # the second may be too late on a fast machine
    last = start(tiny_faces, broken)
    processes.finish(reference, whole / "said.txt")
    assert "done at step 12 of 12" in processes.finish(last, broken / "said.txt")
    for name in ("vre/export.safetensors", "export.safetensors"):
        a, b = load_file(whole / name), load_file(broken / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    a, b = (
        load_file(next((run / "vre/checkpoints/step_00000012").glob("*.safetensors")))
        for run in (whole, broken)
    )
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_sigterm_finishes_the_step_and_saves(tiny_faces: Path, tmp_path: Path) -> None:
    process = start(tiny_faces, tmp_path)
    while process.is_alive() and steps_done(tmp_path) < 2:
        time.sleep(0.005)
    process.terminate()
    output = processes.finish(process, tmp_path / "said.txt", code=130)
    reached = int(output.split("interrupted at step ")[1].split()[0])
    assert (tmp_path / f"vre/checkpoints/step_{reached:08d}/state.json").is_file()
