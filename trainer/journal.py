"""What a run writes down: scalars of every step, kept on the device until they are due, and where they go.

Reading a value from a GPU waits for everything queued before it. So scalars pile up as device tensors and
cross over together; that is also when a NaN is noticed, and by then its step and name are known exactly.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osdface_core.errors import OSDFaceError


class DivergedError(OSDFaceError):
    """A loss, score or gradient norm is NaN or infinite."""


@dataclass(frozen=True)
class NotFinite:
    """The first value that is not finite: optimiser step, names and values."""

    step: int
    values: dict[str, float]

    def __str__(self) -> str:
        return f"step {self.step}: {', '.join(f'{k} is {v}' for k, v in self.values.items())}"


class History:
    """Scalars of the steps since the last `flush`, on the device."""

    def __init__(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """`reduce` averages a tensor over all processes (NaN stays NaN)."""
        self._reduce = reduce
        self._rows: list[tuple[int, tuple[str, ...], Tensor]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, scalars: Mapping[str, Tensor]) -> None:
        """Remember the scalars of one step: 0-d tensors; no transfer happens."""
        if scalars:
            self._rows.append(
                (step, tuple(scalars), torch.stack([v.detach().float() for v in scalars.values()]))
            )

    def latest_is_broken(self) -> bool:
        """Whether the newest step has a value that is not finite; waits for the device."""
        return bool(self._rows) and not bool(self._rows[-1][2].isfinite().all())

    def flush(self) -> tuple[dict[str, float], NotFinite | None]:
        """Means over the remembered steps by name, and the first step with a value that is not finite."""
        sums: dict[str, list[float]] = {}
        bad: NotFinite | None = None
        for step, row in self._read():
            wrong = {k: v for k, v in row.items() if v != v or v in (float("inf"), float("-inf"))}
            if wrong and bad is None:
                bad = NotFinite(step, wrong)
            for name, value in row.items():
                sums.setdefault(name, []).append(value)
        self._rows.clear()
        return {name: sum(values) / len(values) for name, values in sums.items()}, bad

    def _read(self) -> Iterator[tuple[int, dict[str, float]]]:
        if not self._rows:
            return
        flat = torch.cat([row for _, _, row in self._rows])
        flat = flat if self._reduce is None else self._reduce(flat)
        values = iter(flat.tolist())
        for step, names, _ in self._rows:
            yield step, {name: next(values) for name in names}


class Journal:
    """`metrics.jsonl` (one line per log interval, the source of the report) and TensorBoard event files."""

    def __init__(self, folder: Path, *, tensorboard: bool, resume_at: int) -> None:
        """Lines at or after step `resume_at` belong to work that was lost and is done again: they go."""
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= resume_at]
        temporary = self._path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)
        self._writer = _tensorboard(folder / "tensorboard", resume_at) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float], **facts: Any) -> None:
        """Append one line: steps done, facts (`phase`, `kind`), then the values."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **facts, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event files."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl in order; a last line that a kill cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _tensorboard(folder: Path, purge_step: int) -> Any:
    """A SummaryWriter, or None where tensorboard is not installed (metrics.jsonl holds the same numbers)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=purge_step + 1)
