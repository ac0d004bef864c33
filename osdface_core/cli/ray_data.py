"""`osdface bulk` on Ray Data: a listing that streams, workers that hold the model, records that come back.

What goes between them are rows of JSON: blocks of names, then what became of each photo. Pixels stay in the
worker that read them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, OSDFaceError
from .restore import collect_plan, load

if TYPE_CHECKING:  # the process that counts attempts needs no PyTorch
    from .batch import FileRestorer, Work
    from .inputs import Job, Missing

Names = Sequence[str]
"""Paths of a photo and of its result, below their folders."""
Row = dict[str, list[str]]
Record = dict[str, Any]
"""A photo's, as `FileRestorer.finish` or a failure has it; or {"skipped": 1}, {"left_out": line},
{"stop": why no photo can be restored}."""
TOGETHER = 32
"""Photos that a GPU is given at a time, and whose faces are restored as one batch."""
BLOCK = 4
"""Photos that a worker without one is given at a time, and restores one by one."""
CALLS = 3
"""Blocks that a worker with a GPU has in hand: one is read, one in the model, one written."""
ATTEMPTS = 3
"""How often a photo is begun whose worker ends, since it may be what ends it."""


def records(args: argparse.Namespace) -> Iterator[Record]:
    """Restore all photos of `args.photos` on the cluster, and yield what became of them as it is known.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
        OSDFaceError: Ray gave up.
    """
    try:
        ray: Any = importlib.import_module("ray")
        data: Any = importlib.import_module("ray.data")
    except ImportError as error:
        raise ConfigError(
            f'{error.name} is not installed, which osdface bulk needs: pip install "osdface[ray]" '
            '(in a clone: pip install -e ".[ray]")'
        ) from error
    try:
        ray.init(args.ray, ignore_reinit_error=True, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray at {args.ray or 'this machine'}: {error}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")  # fewer blocks than workers
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # [bytes]: each row travels when it is there
    workers, cpus, gpus = _resources(args, ray.nodes())
    arguments = vars(args) | {"run": None, "folder": str(Path.cwd()), "cpus": cpus, "gpus": gpus}
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    # Without a CPU of its own the listing always finds room, and is not made part of the workers.
    rows = data.from_items([args.photos]).map_batches(list_photos, fn_args=(arguments,), num_cpus=0)
    pool = data.ActorPoolStrategy(
        size=workers, max_concurrent_calls_per_actor=CALLS if gpus else 1, enable_true_multi_threading=True
    )
    told = rows.map_batches(
        Worker,
        fn_constructor_args=(arguments, lambda name, going: ray.get(attempts.note.remote(name, going))),
        batch_size=1,
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus,
    )
    try:
        for row in told.iter_rows():
            yield from json.loads(row["records"])
    except ray.exceptions.RayError as error:
        raise OSDFaceError(f"Ray gave up: {error}") from error


def _resources(args: argparse.Namespace, nodes: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Decide on the number of workers, and what each needs: CPUs, GPUs."""
    machines: list[dict[str, float]] = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if (args.device == "auto" and not with_gpu) or not args.device.startswith(("auto", "cuda")):
        workers = args.workers or len(machines)
        return workers, max(1, int(sum(machine.get("CPU", 0) for machine in machines)) // workers), 0
    if args.device.startswith("cuda:"):
        raise ConfigError(f"--device {args.device}: Ray gives each worker a GPU of its own; say cuda")
    shares = (int(machine.get("CPU", 0) // machine["GPU"]) for machine in with_gpu)
    workers = args.workers or int(sum(machine["GPU"] for machine in with_gpu)) or 1
    return workers, max(1, min(shares, default=1)), 1


def list_photos(_: Row, arguments: dict[str, Any]) -> Iterator[Row]:
    """List the photos in blocks, as a stream."""
    from .inputs import Missing
    from .places import place

    args = _entered(arguments)
    try:
        listed = place(args.photos).photos(place(args.out))
        while block := list(islice(listed, TOGETHER if args.gpus else BLOCK)):
            yield _row("photos", [_told(item) if isinstance(item, Missing) else item for item in block])
    except ConfigError as error:
        yield _row("photos", [{"stop": str(error)}])


def _told(missing: Missing) -> Record:
    if missing.failed:
        return {"input": missing.source, "error": missing.reason}
    return {"left_out": f"{missing.source}: {missing.reason}"}


class Attempts:
    """Count how often photos and blocks were begun and not ended."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def note(self, name: str, going: bool) -> int:
        """Note that a photo or block is begun, or (not `going`) has ended. Returns how often it was begun."""
        self._begun[name] += 1
        return self._begun[name] if going else self._begun.pop(name)


def _entered(arguments: dict[str, Any]) -> argparse.Namespace:
    """Go to the folder in which the command was given, where this machine has it: paths may be relative."""
    with suppress(OSError):
        os.chdir(arguments["folder"])
    return argparse.Namespace(**arguments)


def _row(name: str, content: list[Any]) -> Row:
    return {name: [json.dumps(content)]}


@dataclass(eq=False)
class Photo:
    """A photo on its way through a worker.

    Attributes:
        below, result: paths of the photo and of its result below their folders.
        job: where they are read and written, which are copies of what lies on remote storage.
        work: what the steps make of it; None once it goes no further.
        record: what is told about it in the end.
    """

    below: str
    result: str
    job: Job
    work: Work | None = None
    record: Record = field(default_factory=dict)


class Worker:
    """Hold the model on one device and restore blocks of photos; several calls at a time on a GPU.

    A photo that fails is told and costs no other. What is done already, by this run or a former one, is
    skipped, so that a block may be given out again after the loss of a worker.

    Args:
        arguments: those of the command, with `folder` (where it was given), `cpus` and `gpus` (of a worker).
        note: `Attempts.note`, wherever that is.
    """

    def __init__(self, arguments: dict[str, Any], note: Callable[[str, bool], int]) -> None:
        from .places import place

        self.args = _entered(arguments)
        self.source, self.target = place(self.args.photos), place(self.args.out)
        self._note = note
        self._loading, self._model = Lock(), Lock()
        self._pool = ThreadPoolExecutor(self.args.cpus if self.args.gpus else 1)

    def __call__(self, row: Row) -> Iterator[Row]:
        """Restore a block's photos. How many rows it yields follows from the block alone, for retries."""
        items: list[Any] = json.loads(row["photos"][0])
        names = [item for item in items if isinstance(item, list)]
        yield _row("records", [item for item in items if not isinstance(item, list)])
        block = f"block {names[:1]}"
        restore = self._restore if self._note(block, True) == 1 else self._restore_again
        size = TOGETHER if self.args.gpus else 1
        for start in range(0, len(names), size):
            yield _row("records", restore(names[start : start + size]))
        self._note(block, False)

    def _restore(self, names: Sequence[Names]) -> list[Record]:
        with TemporaryDirectory(prefix="osdface-") as folder:
            scratch = (Path(folder) / str(number) for number in range(len(names)))
            photos = list(self._pool.map(self._begin, names, scratch))
            going = {photo: photo.work for photo in photos if photo.work}
            if going:
                with self._model:
                    failures = self._restorer().restore_together(list(going.values()))
                for photo, failure in zip(going, failures, strict=True):
                    if failure:
                        self._fail(photo, failure)
            list(self._pool.map(self._end, going))
        return [photo.record for photo in photos]

    def _restore_again(self, names: Sequence[Names]) -> list[Record]:
        """One by one, after a worker ended: the photo that may have ended it is left out in the end."""
        told: list[Record] = []
        for name in names:
            photo = self.source.named(name[0])
            if self._note(photo, True) > ATTEMPTS:
                told.append({"input": photo, "error": f"ended its worker {ATTEMPTS} times; look at the file"})
            else:
                told += self._restore([name])
            self._note(photo, False)
        return told

    def _begin(self, name: Names, scratch: Path) -> Photo:
        from .inputs import Job

        below, result = name
        out = scratch.with_name(f"{scratch.name}-result")
        job = Job(self.source.path(below, scratch), self.target.path(result, out), Path(below))
        photo = Photo(below, result, job)
        try:
            if not self.args.redo and self._done(photo):
                photo.record = {"skipped": 1}
                return photo
            self.source.fetch(below, job.source)
            restorer = self._restorer()
        except ConfigError as error:
            photo.record = {"stop": str(error)}
            return photo
        except Exception as error:
            self._fail(photo, error)
            return photo
        try:
            photo.work = restorer.prepare(job)
        except Exception as error:
            self._fail(photo, error)
        return photo

    def _done(self, photo: Photo) -> bool:
        try:
            return self.target.changed(photo.result) > self.source.changed(photo.below)
        except OSError:
            return False

    def _end(self, photo: Photo) -> None:
        if photo.work is None:
            return
        try:
            record = self._restorer().finish(photo.work)
            self.target.keep(photo.result, photo.job.target)
            names = {"input": self.source.named(photo.below), "output": self.target.named(photo.result)}
            photo.record = record | names
        except Exception as error:
            self._fail(photo, error)
        photo.work = None  # its pixels are no longer needed

    def _fail(self, photo: Photo, error: Exception) -> None:
        from .report import failure_line

        name = self.source.named(photo.below)
        reason = failure_line(error).replace(str(photo.job.source), name)
        reason = reason.replace(str(photo.job.target), self.target.named(photo.result))
        photo.work, photo.record = None, {"input": name, "error": reason}

    def _restorer(self) -> FileRestorer:
        """The model with what the arguments say. Raises ConfigError."""
        with self._loading:
            return self._loaded

    @cached_property
    def _loaded(self) -> FileRestorer:
        import torch

        from .batch import FileRestorer
        from .inputs import Guard

        if self.args.gpus:
            torch.set_num_threads(1)  # photos share the CPUs, not the steps of one
        return FileRestorer(load(self.args), collect_plan(self.args), Guard([]))
