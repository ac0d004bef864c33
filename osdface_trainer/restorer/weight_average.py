"""Moving average of the trained weights: what is shown, scored and exported."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from ..distributed import asked_for, like


class WeightAverage:
    """diffusers' `EMAModel` by parameter name: float32, on the weights' device, sharded where they are.

    Args:
        parameters: by name; the objects are kept, their values are read at every update.
        decay: of the average; update n uses at most n / (9 + n), so that the first steps don't linger.
            0 = off: the average is the weights themselves.
        start_share: how much of the values that the weights have now is mixed into the average where it is
            used, 0 to 1 (arXiv 2109.01903).
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], decay: float, start_share: float = 0.0
    ) -> None:
        self.parameters = dict(parameters)
        foreach = not asked_for()  # torch has no _foreach_copy_ of shards
        on = decay or start_share
        self._ema = EMAModel(self.parameters.values(), decay=decay, foreach=foreach) if on else None
        self._share = start_share
        self._start = [p.detach().clone() for p in self.parameters.values()] if start_share else []

    def update(self) -> None:
        """Take in the weights after an optimiser step."""
        if self._ema is not None:
            self._ema.step(self.parameters.values())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the module inside the block."""
        if self._ema is None:
            yield
            return
        self._ema.store(self.parameters.values())
        self._ema.copy_to(self.parameters.values())
        if self._start:
            with torch.no_grad():
                for parameter, start in zip(self.parameters.values(), self._start, strict=True):
                    parameter.lerp_(start, self._share)
        try:
            yield
        finally:
            self._ema.restore(self.parameters.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name and the count of updates."""
        if self._ema is None:
            return {"updates": 0, "average": {}}
        average = dict(zip(self.parameters, self._ema.shadow_params, strict=True))
        return {"updates": self._ema.optimization_step, "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave; the names must be the same."""
        assert self._ema is None or set(state["average"]) == set(self.parameters)
        if self._ema is not None:
            self._ema.optimization_step = state["updates"]
            for name, shadow in zip(self.parameters, self._ema.shadow_params, strict=True):
                shadow.copy_(like(shadow, state["average"][name]))
