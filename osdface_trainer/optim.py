"""Learning rates as functions of the step alone, and the moving average of the trained weights.

So a resumed run needs no scheduler state. The average is what gets shown, scored and exported.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .distributed import like


def lr_factor(
    step: int,
    total: int,
    *,
    warmup: int = 0,
    schedule: Literal["constant", "cosine"] = "constant",
    final: float = 0.0,
) -> float:
    """Factor on the base learning rate, 0 < factor <= 1 while warming up, then constant or a half cosine.

    Args:
        step: optimiser step, from 0; past `total` the last value holds.
        total: steps of the schedule.
        warmup: linear warm-up [steps]; step 0 already gets 1/warmup.
        final: factor that the cosine ends on.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_lr(optimizer: Optimizer, base: float, factor: float) -> None:
    """Give every parameter group `base` · its own `lr_scale` (1 when it has none) · `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = base * group.get("lr_scale", 1.0) * factor


class WeightAverage:
    """Averages of parameters, on their device, float32, sharded where they are.

    Args:
        parameters: by name; the objects are kept, their values are read at every update.
        decay: of the average; grows from (1 + n) / (10 + n) so that the first steps don't linger.
            0 = off: the average is the weights themselves.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.updates = 0
        self.average = {name: p.detach().float().clone() for name, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimiser step."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the module's weights are the averages."""
        kept = {name: self.parameters[name].detach().clone() for name in self.average}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def state_dict(self) -> dict[str, object]:
        """Averages and count."""
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Inverse of `state_dict`; the names must be the same."""
        average = state["average"]
        assert isinstance(average, Mapping) and set(average) == set(self.average)
        for name, value in average.items():
            self.average[name].copy_(like(self.average[name], value))
        updates = state["updates"]
        assert isinstance(updates, int)
        self.updates = updates
