"""Processes for training, forked from one that has everything imported: a start costs no ten seconds."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT: Any = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(
    ["torch.distributed.fsdp", "osdface_trainer.vre.stage", "osdface_trainer.restorer.stage"]
)


def command(arguments: Sequence[str]) -> None:
    """Be `python -m osdface_trainer ARGUMENTS`."""
    from osdface_trainer.cli import main

    raise SystemExit(main(arguments))


def train(stage: str, *overrides: str) -> list[str]:
    """Arguments that train a stage of the recipe `smoke`."""
    return ["train", stage, "smoke", "--quiet", *(word for key in overrides for word in ("--set", key))]


def start(target: Callable[..., None], log: Path, *arguments: object, **environment: str) -> BaseProcess:
    """Start target(*arguments) in a process of its own, which writes what it says to a file."""
    module = f"tests.{target.__module__.rpartition('.')[2]}"  # pytest puts the repository's folder before it
    work = (module, target.__name__, log, arguments, environment)
    process = CONTEXT.Process(target=_become, args=work, daemon=True)
    process.start()
    return process


def _become(
    module: str, name: str, log: Path, arguments: Sequence[object], environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    with log.open("wb", buffering=0) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    torch.set_num_threads(1)
    getattr(import_module(module), name)(*arguments)


def finish(process: BaseProcess, log: Path, code: int = 0) -> str:
    """Wait for the process, which has to end with a code; return what it said."""
    process.join(600)
    assert process.exitcode == code, log.read_text()
    return log.read_text()


def run(target: Callable[..., None], folder: Path, *arguments: object, processes: int = 1) -> list[str]:
    """Run target(*arguments) on processes that know each other as torchrun makes them; what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logs = [folder / f"process{rank}.txt" for rank in range(processes)]
    one = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    ranks = [one | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    running = [
        start(target, log, *arguments, **(rank if processes > 1 else {}))
        for log, rank in zip(logs, ranks, strict=True)
    ]
    try:
        return [finish(process, log) for process, log in zip(running, logs, strict=True)]
    finally:
        for process in running:
            process.kill()
