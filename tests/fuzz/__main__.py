"""Try many damaged files: each is read, or refused in one line, soon, in little memory, executing nothing.

    python -m tests.fuzz photos 0 10000     # damaged photos number 0 to 9999
    python -m tests.fuzz models 0 2000      # damaged checkpoints, LoRAs, released folders, base models

A file depends on its number alone; ranges can run side by side. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import faulthandler
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.memory import peak_bytes, reset_peak, resident_bytes

SECONDS = 10.0  # of processor time; a file that takes more counts as a hang
ALLOWANCE = 64 << 20  # bytes beside twice the decoded size: tables of the decoders, unpacked side notes
CPU = torch.device("cpu")
T = TypeVar("T")
RUNS_CODE = (
    "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pty.spawn", "socket.connect",
    "socket.getaddrinfo",
)  # fmt: skip
READ = tuple(
    map(str, (Path(__file__).parents[2], sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/", "/usr/"))
)
"""Where Python itself, its packages and this project read."""


class Watch:
    """Measures the steps of one file, and notes what was started or written where it should not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.active = str(folder.resolve()), False
        self.events: list[str] = []
        self.memory: dict[str, float] = {}
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in RUNS_CODE:
            self.events.append(f"{event} {args[:1]}")
        if event != "open" or isinstance(args[0], int):
            return
        written = bool(set(args[1] or "") & set("wax+"))
        allowed = ("/proc/self/", "/dev/null") if written else READ
        if not str(Path.cwd() / os.fsdecode(args[0])).startswith((self.folder, *allowed)):
            self.events.append(f"{'writes' if written else 'reads'} {args[0]}")

    def measure(self, step: str, action: Callable[[], T], decoded: Callable[[T | None], int]) -> T:
        """Run a step; keep by how much its peak exceeds what it may take, relative to that.

        Args:
            decoded: the step's result, None where it failed, to the bytes that it may take twice.
        """
        before, result = resident_bytes(), None
        reset_peak(CPU)
        try:
            result = action()
            return result
        finally:
            grown = peak_bytes(CPU) - before
            self.memory[step] = max(self.memory.get(step, 0.0), grown / (2 * decoded(result) + ALLOWANCE))


def work(kind: str, first: int, last: int) -> None:
    """Try the files of a range; print a line of JSON when one begins and when it is done."""
    limit_process()
    cases = importlib.import_module(f"tests.fuzz.{kind}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        (folder / "work").mkdir()
        whole = cases.seeds(folder / "seeds")
        watch = Watch(folder / "work")
        os.chdir(folder / "work")
        tempfile.tempdir = watch.folder
        for label, data in whole.items():  # imports what is imported late
            told = cases.check(
                cases.put(folder / "work", label, data), lambda step, action, decoded: action()
            )
            assert not told.startswith("refused"), f"{label}: {told}"
        for number in range(first, last):
            print(json.dumps({"begin": number}), flush=True)
            print(json.dumps(one(cases, number, whole, watch)), flush=True)


def limit_process() -> None:
    """Give memory back at once when it is freed, so that peaks are those of one file; at most 8 GB."""
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)


def one(cases: Any, number: int, whole: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Try one file. Returns number, outcome, seconds, memory (1 is the limit), and what is wrong."""
    folder = Path(watch.folder)
    label, data = cases.mutant(number, whole)
    path = cases.put(folder, label, data)
    watch.memory, watch.events, wrong = {}, [], ""
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True)
    start, watch.active = time.process_time(), True
    try:
        outcome = cases.check(path, watch.measure)
    except Exception:
        outcome, wrong = "crash", traceback.format_exc()
    watch.active, seconds = False, time.process_time() - start
    faulthandler.cancel_dump_traceback_later()
    if watch.events or (folder / "executed").exists():
        wrong += f"executed: {watch.events}"
    if seconds > SECONDS:
        wrong += f"took {seconds:.1f} s"
    wrong += "".join(f"{step}: {part:.2f} of its memory\n" for step, part in watch.memory.items() if part > 1)
    cases.clear(folder)
    told = {"number": number, "file": label, "outcome": outcome, "seconds": seconds, "wrong": wrong}
    return told | {"memory": max(watch.memory.values(), default=0.0)}


def campaign(kind: str, first: int, last: int) -> int:
    """Run a range in a process that is started again when it dies. Returns 1 if anything was wrong."""
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, largest, wrong, start = (0.0, ""), (0.0, ""), [], time.time()
    at, begun = first, -1
    while at < last:
        command = [sys.executable, "-m", "tests.fuzz", kind, str(at), str(last), "--worker"]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            assert process.stdout
            for line in process.stdout:
                told = json.loads(line)
                if "begin" in told:
                    begun = at = told["begin"]
                    continue
                outcomes[told["outcome"]] += 1
                slowest = max(slowest, (told["seconds"], told["file"]))
                largest = max(largest, (told["memory"], told["file"]))
                if told["wrong"]:
                    wrong.append(told["file"])
                    print(f"--- {told['file']}\n{told['wrong']}", flush=True)
                at = told["number"] + 1
            errors.seek(0)
            said = errors.read()
        if at < last and begun != at:
            raise SystemExit(f"the process ended before a file: {said[-3000:]}")
        if at < last:
            print(f"--- {at}: the process ended ({process.wait()})\n{said[-3000:]}", flush=True)
            outcomes["died"] += 1
            wrong.append(str(at))
            at += 1
    for outcome, count in outcomes.most_common():
        print(f"{count:6d}  {outcome}")
    print(f"slowest {slowest[0]:.2f} s ({slowest[1]})")
    print(f"most memory {largest[0]:.2f} of what is allowed ({largest[1]})")
    print(f"{outcomes.total()} files in {time.time() - start:.0f} s, {len(wrong)} wrong: {' '.join(wrong)}")
    return bool(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kind", choices=("photos", "models"))
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.kind, options.first, options.last)
    else:
        sys.exit(campaign(options.kind, options.first, options.last))
