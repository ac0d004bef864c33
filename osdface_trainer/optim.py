"""Learning rates as functions of the step alone, so that a resumed run needs no scheduler state."""

import math
from typing import Literal

from torch.optim import Optimizer


def lr_factor(
    step: int,
    total: int,
    *,
    warmup: int = 0,
    schedule: Literal["constant", "cosine"] = "constant",
    final: float = 0.0,
) -> float:
    """Compute the factor on the base learning rate: linear warm-up, then constant or a half cosine.

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
