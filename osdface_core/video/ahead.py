"""Work ahead in a thread, a bounded number of items; hold Ctrl-C back where it would tear a step apart."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int) -> Generator[T]:
    """Yield the items, up to `depth` of them made in advance; 0: none, in the caller's thread.

    An exception of `items` is raised where its item would have come. Closing the generator ends the thread
    after the item that it is making.
    """
    if depth < 1:
        yield from items
        return
    ready: queue.Queue[tuple[T | None, BaseException | None] | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None] | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=make, daemon=True, name="video-ahead")
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            item, error = entry
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)
