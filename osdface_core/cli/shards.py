"""A share of many photos, for one of several processes."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Share `index` (from 0) of `count`: a photo's share follows from its name alone."""

    index: int
    count: int

    def holds(self, below: Path) -> bool:
        """Tell whether a photo belongs to this share, by its path below the searched folder."""
        digest = hashlib.blake2b(os.fsencode(below.as_posix()), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    def part(self, index: int, count: int) -> Shard:
        """Divide this share once more: part `index` of `count`."""
        return Shard(self.index + self.count * index, self.count * count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Read `I/N`, numbered from 0. Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    shard = Shard(*map(int, found.groups())) if found else Shard(0, 0)
    if shard.index >= shard.count:
        raise ConfigError(f"--shard {text}: expected I/N, I from 0 to N-1 (--shard 0/8 to --shard 7/8)")
    return shard
