"""Pickles of weights that hold something else, run code, or lie in odd archives."""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tests.fuzz.photos import damaged


def read_pickle(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def written(content: Any, draw: random.Random | None = None) -> bytes:
    """Save as PyTorch does, now or before version 1.6."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=draw is None or draw.random() < 0.8)
    return file.getvalue()


class Foreign:
    """An object of a class that no reader of weights knows."""


class Payload:
    """Runs code where somebody unpickles it as pickle does."""

    def __init__(self, draw: random.Random) -> None:
        self.call = draw.choice((
            (os.system, ("touch executed",)), (exec, ("open('executed', 'w')",)),
            (eval, ("open('executed', 'w')",)), (os.mkdir, ("executed",)),
            (print, ("executed",)), (io.open, ("executed", "w")),
        ))  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def odd_values(content: Any, draw: random.Random) -> bytes:
    """Put something else than tensors by name into a state dict."""
    state = content.get("state_dict", content)
    name, value = draw.choice(list(state.items()))
    odd: tuple[Callable[[], Any], ...] = (
        lambda: None, lambda: 3, lambda: "x", lambda: [value], lambda: {name: value}, lambda: np.ones(3),
        lambda: np.float64(1), Foreign, lambda: Payload(draw), lambda: torch.nn.Linear(2, 2), lambda: state,
        lambda: value.to_sparse(), lambda: value.to("meta"), lambda: torch.ones(1).expand(10**6, 10**6),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        lambda: value.to(torch.complex64), lambda: torch.nn.Parameter(value), lambda: value.to(torch.int32),
        lambda: value.flatten(), lambda: value * math.nan,
    )  # fmt: skip
    key: Any = draw.choice(
        (name, name, name, 0, None, 1.5, ("a", 1), b"x", "", "a\nb", "vqvae_LQ.x", f"{name}\x1b[2J")
    )
    if key != name and draw.random() < 0.5:
        state[key] = state.pop(name)
    else:
        state[key] = draw.choice(odd)()
    return written(content, draw)


def odd_shells(content: Any, draw: random.Random) -> bytes:
    """Wrap the state dict in something else, or write it as another program would."""
    state = content.get("state_dict", content)
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    shells: tuple[Callable[[], Any], ...] = (
        lambda: {"state_dict": {"state_dict": state}}, lambda: {"model": state}, lambda: [state],
        lambda: (state,), lambda: {"state_dict": None}, lambda: {"state_dict": []}, lambda: {}, lambda: None,
        lambda: list(state.items()), lambda: dict.fromkeys(range(1000)), lambda: deep,
        lambda: collections.OrderedDict(state),
        lambda: {"state_dict": state, "optimizer": Foreign()}, lambda: {"state_dict": Payload(draw)},
        lambda: Payload(draw), lambda: {f"module.{k}": v for k, v in state.items()}, lambda: set(state),
    )  # fmt: skip
    shell = draw.choice(shells)()
    if draw.random() < 0.3:
        return pickle.dumps(shell, protocol=draw.choice((0, 2, 4, 5)))
    return written(shell, draw)


def odd_archives(content: Any, draw: random.Random) -> bytes:
    """Change the zip archive around the pickle: packed, entries twice or gone, others, damaged records."""
    if draw.random() < 0.1:
        return bomb()
    source, target = zipfile.ZipFile(io.BytesIO(written(content))), io.BytesIO()
    records = [(name, source.read(name)) for name in source.namelist()]
    at = draw.randrange(len(records)) if draw.random() < 0.5 else 0
    name, record = records[at]
    way, packing = draw.random(), zipfile.ZIP_STORED
    if way < 0.4:
        records[at] = (name, damaged(record, draw))
    elif way < 0.5:
        del records[at]
    elif way < 0.6:
        records.append(
            (draw.choice(("../../executed", "/executed", "executed", "archive/constants.pkl")), record)
        )
    elif way < 0.75:
        records[at] = (name, record[: draw.randrange(len(record) + 1)])
    elif way < 0.85:
        records[at] = (name, record * 3)
    else:
        packing = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(target, "w", packing) as archive:
        for name, record in records:
            archive.writestr(name, record)
    return target.getvalue()


@lru_cache(maxsize=1)
def bomb() -> bytes:
    """300 MB of zeros in 300 kB, as a tensor."""
    source, target = zipfile.ZipFile(io.BytesIO(written({"a": torch.zeros(75 << 20)}))), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return target.getvalue()


PICKLES = (odd_values, odd_shells, odd_archives)
