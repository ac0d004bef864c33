"""Fixtures: no gradient, the same random numbers, and every instruction set that this CPU has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from osdface_cpu import library

torch.set_num_threads(1)  # a test that is about threads says so


@pytest.fixture(autouse=True)
def no_gradient() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(params=[*library.LEVELS[:3], library.OTHER])
def each_level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test on the kernels of each instruction set; skips what was not built or this CPU lacks."""
    name, own = request.param, library.level()
    order = (library.OTHER, *library.LEVELS)
    if not library._path(name).exists() or order.index(name) > order.index(own):
        pytest.skip(f"no {name} here")
    monkeypatch.setattr(library, "level", lambda: name)
    return name


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test on so many threads."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)
