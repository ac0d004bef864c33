"""`--devices`: one process for each, all with the same command and a share of the photos."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ..console import complain
from ..devices import pick_device
from ..errors import ConfigError
from .main import answer
from .shards import Shard


def run_on(devices: Sequence[str], args: argparse.Namespace, shard: Shard | None) -> int:
    """Run `args.run` once per device and wait for all.

    Args:
        shard: the share of the photos that all of them have together.
    Returns:
        the highest exit status; 1 for a process that was killed.
    Raises:
        ConfigError: a device that is not here, or `--json`, which one process writes.
    """
    if args.json:
        raise ConfigError("--json is written by one process; use --report with --devices")
    for device in devices:
        pick_device(device)
    shares = [(shard or Shard(0, 1)).part(number, len(devices)) for number in range(len(devices))]
    context = multiprocessing.get_context("spawn")
    processes = []
    for device, share in zip(devices, shares, strict=True):
        own = {"devices": None, "device": device, "shard": str(share), "quiet": True}
        arguments = argparse.Namespace(**(vars(args) | own))
        processes.append(context.Process(target=_work, args=(arguments,), name=device))
    former = signal.signal(signal.SIGTERM, _leave)
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    except KeyboardInterrupt:  # the terminal tells the others, too; what they have begun ends whole
        for process in processes:
            process.join()
        raise
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        signal.signal(signal.SIGTERM, former)
    return max(_status(process, share) for process, share in zip(processes, shares, strict=True))


def _work(args: argparse.Namespace) -> None:
    sys.exit(answer("restore", lambda: args.run(args)))


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def _status(process: Any, share: Shard) -> int:
    if process.exitcode in (0, 1, 2):
        return process.exitcode
    complain(
        f"the process on {process.name} (shard {share}) was ended from outside ({process.exitcode}); "
        "the same command goes on from there"
    )
    return 1
