"""What the training loop needs from a stage, and what a stage gets from the loop.

`loop.py` owns data order, seeds, checkpoints, logging, samples, NaN stops. A stage
(`vre/stage.py`, `restorer/stage.py`) owns the mathematics of one optimiser step. Neither knows the
other's inside.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from osdface_core.config import OSDFaceConfig


@dataclass(frozen=True)
class FaceBatch:
    """Pixel-aligned pairs on the training device, for one optimiser step of this process.

    Attributes:
        hq: (B, 3, S, S) float32, `unit`, the clean face, augmented.
        lq: (B, 3, S, S) float32, `unit`, the degraded one.
        index: (B,) int64 on the CPU, positions in the training faces; -1 - position in the validation faces.
        tags: what each face shows, "" where nobody said it; empty where no prompt is made of them.
    """

    hq: Tensor
    lq: Tensor
    index: Tensor
    tags: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.hq.shape[0]

    def split(self, parts: int) -> Iterator["FaceBatch"]:
        """Yield `parts` micro-batches of equal size, in order (gradient accumulation)."""
        fields = (self.hq, self.lq, self.index)
        for number, pieces in enumerate(zip(*(tensor.chunk(parts) for tensor in fields), strict=True)):
            size = len(pieces[0])
            yield FaceBatch(*pieces, tags=self.tags[number * size : (number + 1) * size])


class TrainingStage(Protocol):
    """One trainable stage. Built by `build(recipe, accelerator)` of its module, already on the device.

    Attributes:
        name: sub-folder of the run, `vre` or `restorer`.
        total_steps: optimiser steps from the first to the last phase.
        modules: everything whose weights or buffers change while training; the loop stores them in the
            checkpoint under these names, but for frozen parameters: those come from their own files, and
            one that changes without gradient belongs into `state_dict`. The stage has passed them through
            `accelerator.prepare`.
        optimizers: by name; the loop stores their states. Learning rates are set by the stage from the
            step number alone (see optim.py), so nothing else has to resume.
    """

    name: str
    total_steps: int
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]

    def step(self, batch: FaceBatch, step: int) -> dict[str, Tensor]:
        """Make one optimiser step (all micro-batches, all optimisers).

        The random generators were seeded from (seed, step, process) just before, so a stage may use the
        global generator freely and still resumes exactly. `step` counts from 0.

        Returns:
            Detached 0-d tensors on the device, the same keys through a phase: no `.item()` here, the
            loop reads them at log intervals. A value that is not finite stops the run.
        """
        ...

    def sample(self, batch: FaceBatch) -> Tensor:
        """Draw (B, 3, S, n·S) float, `unit`: a strip per pair, LQ | restored | HQ or what the stage shows."""
        ...

    def validate(self, batch: FaceBatch) -> dict[str, Tensor]:
        """Score the validation faces, means over the batch, 0-d on the device; {} when the stage has none."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what resumes beyond modules and optimisers: nested dicts of tensors, numbers, strings."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave."""
        ...

    def export(self) -> tuple[OSDFaceConfig, dict[str, Tensor], dict[str, Any]]:
        """Return config, tensors and provenance for `osdface_core.checkpoint.save_checkpoint`.

        The loop adds step, seed, recipe and data hash to the provenance.
        """
        ...


def to_signed(unit: Tensor) -> Tensor:
    """Convert `unit` to `signed`."""
    return unit * 2 - 1


def to_unit(signed: Tensor) -> Tensor:
    """Convert `signed` to `unit`, clamped: for pictures, not for losses."""
    return (signed.detach().float() / 2 + 0.5).clamp(0, 1)


class Position(NamedTuple):
    """Where an optimiser step lies: the phase, the step within it and the phase's length."""

    phase: str
    step: int
    steps: int


def position(phases: Mapping[str, int], step: int) -> Position:
    """Find where an optimiser step lies; past the end, where the last step lies.

    Args:
        phases: steps by phase, in order; a phase may have none.
    """
    start, found = 0, Position(next(iter(phases)), 0, 0)
    for phase, steps in phases.items():
        if step < start + steps:
            return Position(phase, step - start, steps)
        found = Position(phase, steps - 1, steps) if steps else found
        start += steps
    return found
