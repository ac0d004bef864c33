"""Exponential moving average of the trained weights: what gets shown, scored and exported."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import like


class EMA:
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
