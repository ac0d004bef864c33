"""Many photos through three steps, so that the model does not wait for disk, decoder or detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol


class Steps(Protocol):
    """What happens to an item; each step takes what the one before returned."""

    def prepare(self, item: Any, /) -> Any: ...
    def restore(self, work: Any, /) -> Any: ...
    def finish(self, work: Any, /) -> Any: ...


Tell = Callable[[Any, Any], None]
"""Told an item and its result, or the Exception that it failed with; in the items' order."""


def one_by_one(items: Iterable[Any], steps: Steps, tell: Tell) -> None:
    """All steps of an item, then the next item."""
    for item in items:
        tell(item, _attempt(lambda item=item: steps.finish(steps.restore(steps.prepare(item)))))


def overlapped(items: Iterable[Any], steps: Steps, tell: Tell) -> None:
    """While `restore` works on an item, one thread prepares the next and another finishes the last.

    At most three items are held, whatever their number. `tell` is called from the finishing thread. An
    interruption still lets the item that is being finished end whole.
    """
    rest = iter(items)
    ahead, behind = ThreadPoolExecutor(1, "prepare"), ThreadPoolExecutor(1, "finish")
    finishing: Future[None] | None = None
    try:
        coming = _submit(ahead, steps, rest)
        while coming:
            item, prepared = coming
            work = _attempt(prepared.result)
            coming = _submit(ahead, steps, rest)
            if not isinstance(work, Exception):
                work = _attempt(steps.restore, work)
            if finishing:
                finishing.result()  # the model never runs further ahead than one item
            finishing = behind.submit(_finish, steps, tell, item, work)
        if finishing:
            finishing.result()
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)
        behind.shutdown()


def _submit(ahead: ThreadPoolExecutor, steps: Steps, rest: Iterable[Any]) -> tuple[Any, Future[Any]] | None:
    for item in rest:
        return item, ahead.submit(steps.prepare, item)
    return None


def _finish(steps: Steps, tell: Tell, item: Any, work: Any) -> None:
    tell(item, work if isinstance(work, Exception) else _attempt(steps.finish, work))


def _attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or the Exception it raised: one bad item must not cost the other thousand."""
    try:
        return call(*arguments)
    except Exception as error:
        return error
