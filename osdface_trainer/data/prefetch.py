"""Work that threads do a little ahead of the one who needs it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")


def prefetch(
    pool: ThreadPoolExecutor, work: Callable[[Key], Result], keys: Iterable[Key], depth: int
) -> Iterator[tuple[Key, Result]]:
    """Yield (key, work(key)) in order, at most `depth` results under way: a plain map would hold them all."""
    waiting: deque[tuple[Key, Future[Result]]] = deque()
    try:
        for key in keys:
            waiting.append((key, pool.submit(work, key)))
            if len(waiting) >= depth:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
