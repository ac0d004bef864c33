"""`--dtype auto` on a CPU: bfloat16 where this very machine is quicker with it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from osdface_core import devices
from osdface_core.devices import cpu_multiplies_bf16, pick_dtype

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def not_timed_yet() -> Iterator[None]:
    cpu_multiplies_bf16.cache_clear()
    yield
    cpu_multiplies_bf16.cache_clear()


@pytest.mark.parametrize(
    ("product", "convolution", "expected"),
    [(0.5, 0.6, torch.bfloat16), (0.2, 0.3, torch.bfloat16), (1.0, 1.0, torch.float32),
     (2.0, 1.3, torch.float32), (0.5, 3.0, torch.float32)],
)  # fmt: skip
def test_both_kinds_of_work_decide_once(
    product: float, convolution: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {2: product, 4: convolution}
    monkeypatch.setattr(devices, "_bf16_share", lambda shape, work: shares[len(shape)])
    assert pick_dtype("auto", CPU) == expected
    shares.update({2: 1 / product, 4: 1 / convolution})
    assert pick_dtype("auto", CPU) == expected  # timed once per process
    assert pick_dtype("fp32", CPU) == torch.float32 and pick_dtype("bf16", CPU) == torch.bfloat16


def test_the_share_is_of_the_best_times() -> None:
    calls = 0

    def work(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        disturbed = 0.02 if calls < 10 else 0.0
        time.sleep(disturbed + (0.004 if x.dtype == torch.float32 else 0.001))
        return x

    assert devices._bf16_share((2, 2), work) < 0.6


def test_emulated_bfloat16_is_soon_known() -> None:
    """A CPU without it took a minute for twenty passes each."""
    calls = 0

    def work(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        time.sleep(0.3 if x.dtype == torch.bfloat16 else 0.01)
        return x

    assert devices._bf16_share((2, 2), work) > 5
    assert calls <= 4


def test_the_timing_itself_runs() -> None:
    start = time.perf_counter()
    assert cpu_multiplies_bf16() in (True, False)
    assert cpu_multiplies_bf16() is cpu_multiplies_bf16()
    assert time.perf_counter() - start < 20
