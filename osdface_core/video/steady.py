"""Steady over time what the restoration changed, so that restored skin and hair do not boil.

The change (restored minus original) of a face is averaged with that of the frame before, in the coordinates
of the aligned crop, as far as the original stayed the same there: an eye that opens is followed at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces import Face

TAU = 0.12
"""Time after which the memory of a change has faded to 1/e [s]."""
ALIKE = 0.03
"""Difference of the low-passed originals (unit range) at which the memory counts by 1/e."""
BLUR = 8
"""Side of the squares over which originals are compared [px of the crop]: beyond noise and compression."""


@dataclass(frozen=True)
class _Memory:
    time: float
    original: Tensor
    change: Tensor


class ChangeSteadier:
    """Remembers one change per track; a track that is not seen for a frame is forgotten."""

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
            crop, change = crops[number], restored[number] - crops[number]
            low = F.avg_pool2d(crop[None], BLUR)
            last = None if face.track is None else self._memory.get(face.track)
            if last is not None:
                weight = _weight(low, last.original, time - last.time)
                weight = F.interpolate(weight, change.shape[-2:], mode="bilinear")[0]
                change = torch.lerp(change, last.change, weight)
                result[number] = (crop + change).clamp(0.0, 1.0)
            if face.track is not None:
                memory[face.track] = _Memory(time, low, change)
        self._memory = memory
        return result


def _weight(now: Tensor, before: Tensor, step: float) -> Tensor:
    """How much the last change counts, (1, 1, h, w): less over longer steps and where the face moved."""
    difference = (now - before).abs().mean(dim=1, keepdim=True)
    difference = F.max_pool2d(difference, 3, stride=1, padding=1)
    return math.exp(-max(step, 0.0) / TAU) * torch.exp(-((difference / ALIKE) ** 2))
