"""Derive independent random streams from (seed, counter): no state that a resume would have to restore."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """Hash integers to one of 63 bits; a change in any bit of any value changes the result throughout.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), chained over the values.
    """
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def as_seeds(seeds: Sequence[int] | Tensor) -> list[int]:
    """Make a plain list of integers from a list, a range or an integer tensor of one dimension."""
    return [int(seed) for seed in (seeds.tolist() if isinstance(seeds, Tensor) else seeds)]


def spread(seed: int, count: int) -> np.ndarray:
    """Compute `count` hashed numbers (uint64): the outputs of SplitMix64 started at `seed`."""
    state = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
