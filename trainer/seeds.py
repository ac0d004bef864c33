"""Derive independent random streams from (seed, counter) without state that a resume would have to restore."""

from collections.abc import Sequence

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
    """A plain list of integers from a list, a range or an integer tensor of one dimension."""
    return [int(seed) for seed in (seeds.tolist() if isinstance(seeds, Tensor) else seeds)]
