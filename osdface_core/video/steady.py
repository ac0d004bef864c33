"""Steady over time what the restoration changed, so that restored skin and hair do not boil.

A restored face is its original, low-passed, and the rest: what the restoration made of it. That rest is
averaged with the frame before's, in the coordinates of the aligned crop, as far as the original stayed the
same: an eye that opens is followed at once, light and shade always are, and the original's noise stays away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces import Face

TAU = 0.3
"""Time after which the memory has faded to 1/e [s]."""
ALIKE = 0.12
"""Difference of the originals (unit range) at which the memory counts by 1/e."""
BLUR = 8
"""Side of the squares over which originals are compared [px of the crop]: beyond noise and compression."""
NOISE = 1.5
"""So many times the median difference of single pixels is noise, not movement."""


@dataclass(frozen=True)
class _Memory:
    time: float
    original: Tensor
    rest: Tensor


class ChangeSteadier:
    """Remembers one face per track; a track that is not seen for a frame is forgotten."""

    def __init__(self) -> None:
        self._memory: dict[int, _Memory] = {}

    @torch.inference_mode()
    def __call__(self, faces: Sequence[Face], crops: Tensor, restored: Tensor, time: float) -> Tensor:
        """Steady the faces of the next frame.

        Args:
            faces: N with their `track`.
            crops, restored: (N, 3, H, W) in [0, 1], before and after.
            time: of the frame [s].
        Returns:
            (N, 3, H, W) in [0, 1].
        """
        memory: dict[int, _Memory] = {}
        result = restored.clone()
        for number, face in enumerate(faces):
            if face.track is None:
                continue
            crop = crops[number : number + 1]
            low = _enlarged(F.avg_pool2d(crop, BLUR), crop)
            rest = restored[number : number + 1] - low
            last = self._memory.get(face.track)
            if last is not None:
                weight = _weight(crop, last.original, time - last.time)
                rest = torch.lerp(rest, last.rest, _enlarged(weight, crop))
                result[number] = (low + rest).clamp(0.0, 1.0)[0]
            memory[face.track] = _Memory(time, crop, rest)
        self._memory = memory
        return result


def _enlarged(small: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(small, like.shape[-2:], mode="bilinear")


def _weight(now: Tensor, before: Tensor, step: float) -> Tensor:
    """How much the memory counts, (1, 1, h, w): less over longer steps and where the original moved."""
    difference = now - before
    slow = F.avg_pool2d(difference, BLUR).abs().mean(dim=1, keepdim=True)
    fine = F.avg_pool2d(difference.abs().mean(dim=1, keepdim=True), BLUR)
    moved = torch.maximum(slow, fine - NOISE * fine.median())
    moved = F.max_pool2d(moved, 3, stride=1, padding=1)
    return math.exp(-max(step, 0.0) / TAU) * torch.exp(-((moved / ALIKE) ** 2))
