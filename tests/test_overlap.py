"""Three steps side by side: order, failures, interruptions, and never more than three items in hand."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from osdface_core.cli.batch import one_by_one, overlapped

RUNNERS = (one_by_one, overlapped)


class Item:
    """An item's work; how many of them are alive is counted."""

    alive = 0
    most = 0
    lock = threading.Lock()

    def __init__(self, number: int) -> None:
        self.number = number
        with Item.lock:
            Item.alive += 1
            Item.most = max(Item.most, Item.alive)

    def __del__(self) -> None:
        with Item.lock:
            Item.alive -= 1


class Steps:
    """Steps that fail where told to."""

    def __init__(self, fails: dict[int, str] | None = None, error: BaseException | None = None) -> None:
        self.fails = fails or {}
        self.error = error or ValueError("no")
        self.threads: dict[str, set[str]] = {"prepare": set(), "restore": set(), "finish": set()}

    def prepare(self, item: int) -> Any:
        return self._do("prepare", Item(item))

    def restore(self, work: Item) -> Item:
        return self._do("restore", work)

    def finish(self, work: Item) -> int:
        return self._do("finish", work).number * 10

    def _do(self, step: str, work: Item) -> Item:
        self.threads[step].add(threading.current_thread().name)
        if self.fails.get(work.number) == step:
            raise self.error
        return work


def collect(runner: Any, count: int, steps: Any) -> list[Any]:
    told: list[Any] = []
    runner(range(count), steps, lambda item, result: told.append((item, result)))
    return told


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_results_come_in_order(runner: Any, count: int) -> None:
    assert collect(runner, count, Steps()) == [(i, i * 10) for i in range(count)]


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_failure_stays_with_its_item_and_in_its_place(runner: Any) -> None:
    told = collect(runner, 6, Steps({0: "prepare", 2: "restore", 3: "finish", 5: "prepare"}))
    assert [item for item, _ in told] == list(range(6))
    assert [i for i, result in told if isinstance(result, ValueError)] == [0, 2, 3, 5]
    assert [result for _, result in told if isinstance(result, int)] == [10, 40]


def test_the_model_stays_in_the_callers_thread() -> None:
    steps = Steps()
    collect(overlapped, 5, steps)
    assert steps.threads["restore"] == {threading.current_thread().name}
    assert not steps.threads["restore"] & (steps.threads["prepare"] | steps.threads["finish"])


def test_neighbours_really_run_side_by_side() -> None:
    """Each model pass waits until the next photo is prepared; the photo before is finished meanwhile."""

    class Waiting(Steps):
        def __init__(self) -> None:
            super().__init__()
            self.prepared = [threading.Event() for _ in range(5)]
            self.restoring = [threading.Event() for _ in range(5)]

        def prepare(self, item: int) -> Any:
            self.prepared[item].set()
            return super().prepare(item)

        def restore(self, work: Item) -> Item:
            self.restoring[work.number].set()
            assert work.number == 4 or self.prepared[work.number + 1].wait(10)
            return work

        def finish(self, work: Item) -> int:
            assert work.number == 4 or self.restoring[work.number + 1].wait(10)
            return super().finish(work)

    assert collect(overlapped, 5, Waiting()) == [(i, i * 10) for i in range(5)]


@pytest.mark.parametrize("slow", ["prepare", "restore", "finish"])
def test_few_items_are_held_whichever_step_is_slow(slow: str) -> None:
    class Slow(Steps):
        def _do(self, step: str, work: Item) -> Item:
            time.sleep(0.02 if step == slow else 0)
            return super()._do(step, work)

    Item.most = Item.alive
    before = Item.alive
    collect(overlapped, 12, Slow())
    assert Item.most - before <= 3
    assert Item.alive == before


@pytest.mark.parametrize("step", ["prepare", "restore", "finish"])
def test_an_interruption_ends_the_run_and_what_was_begun_is_whole(step: str) -> None:
    steps = Steps({2: step}, KeyboardInterrupt())
    told: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        overlapped(range(9), steps, lambda item, result: told.append((item, result)))
    assert told == [(0, 0), (1, 10)]


def test_a_listener_that_fails_ends_the_run() -> None:
    def closed(item: int, result: Any) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        overlapped(range(9), Steps(), closed)
