"""What a run shows and writes down: progress bar, scalars, validation scores, sample grids, bad batches.

Reading a value from a GPU waits for everything queued before it. So the scalars of all steps since the last
log stay on the device and are read together. That is also when a NaN is noticed, with its step and name.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from osdface_core.errors import OSDFaceError
from osdface_core.files import replacing, write_text
from osdface_core.images import from_unit

from .distributed import SAMPLE, all_mean, all_sum, seed_all, start_trackers
from .loader import Loader
from .recipe.config import Recipe
from .run_folder import RunFolder
from .stage import FaceBatch, TrainingStage, position


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

    def add(self, step: int, scalars: Mapping[str, Tensor]) -> None:
        """Remember the scalars of one step: 0-d tensors; no transfer happens."""
        if scalars:
            self._rows.append(
                (step, tuple(scalars), torch.stack([v.detach().float() for v in scalars.values()]))
            )

    def latest_is_broken(self) -> bool:
        """Tell whether the newest step has a value that is not finite; waits for the device."""
        return bool(self._rows) and not bool(self._rows[-1][2].isfinite().all())

    def flush(self) -> tuple[dict[str, float], NotFinite | None]:
        """Return means over the steps by name, and the first step with a value that is not finite."""
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


class MetricsWriter:
    """`metrics.jsonl` (one line per log interval, the source of the report) and accelerate's trackers."""

    def __init__(self, folder: Path, accelerator: Accelerator, resume_at: int) -> None:
        """Drop lines past step `resume_at`: they belong to work that was lost and is done again."""
        self._path, self._accelerator = folder / "metrics.jsonl", accelerator
        if not accelerator.is_main_process:
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= resume_at]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float], **facts: Any) -> None:
        """Append one line: steps done, facts (`phase`, `kind`), then the values."""
        if self._accelerator.is_main_process:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **facts, **values}) + "\n")
        self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Flush what the trackers hold."""
        for tracker in self._accelerator.trackers:
            tracker.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl in order, without a last line that a kill cut off."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def stack_strips(strips: Tensor, gap: int = 4) -> Tensor:
    """Stack (B, 3, H, W) unit to one picture (3, B·H + (B-1)·gap, W), dark grey between the rows."""
    rows = F.pad(strips, (0, 0, 0, gap), value=0.15)
    return rows.transpose(0, 1).flatten(1, 2)[:, :-gap]


def write_png(path: Path, picture: Tensor) -> None:
    """Write (3, H, W) unit as an 8-bit PNG, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(from_unit(picture, np.uint8)).save(temporary)


class TrainingLogger:
    """Progress bar, scalars, validation scores and samples; reads values off the device only when due."""

    def __init__(
        self, recipe: Recipe, stage: TrainingStage, accelerator: Accelerator, folder: RunFolder, bar: bool
    ) -> None:
        self.recipe, self.stage, self.accelerator, self.folder = recipe, stage, accelerator, folder
        self.phases = recipe.phases(folder.stage)
        several = accelerator.num_processes > 1
        self.history = History((lambda x: all_mean(accelerator, x)) if several else None)
        self._show, self._bar = bar, None
        self._mark = (0, time.monotonic())
        self._metrics: MetricsWriter | None = None
        self._fixed: FaceBatch | None = None

    def open(self, start: int, total: int) -> None:
        """Start the bar and the metrics; lines past `start` belong to work that is done again."""
        self._bar = tqdm(
            total=total, initial=start, unit="step", desc=f"train {self.folder.stage}",
            disable=not self._show, dynamic_ncols=True, smoothing=0.05,
        )  # fmt: skip
        self._mark = (start, time.monotonic())
        start_trackers(self.accelerator, asdict(self.recipe), self.folder.path, start)
        self._metrics = MetricsWriter(self.folder.path, self.accelerator, start)

    def close(self) -> None:
        """Close bar and metrics."""
        for thing in (self._bar, self._metrics):
            if thing is not None:
                thing.close()

    def advance(self) -> None:
        """Move the bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def log(self, done: int) -> NotFinite | None:
        """Write the means since the last call; returns the first value that was not finite, if any."""
        values, bad = self.history.flush()
        if not values:
            return bad
        if self.accelerator.device.type == "cuda":
            values["memory/peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        values["speed/images_per_s"] = self._rate(done)
        self._write(done, values, "train")
        if self._bar is not None:
            shown = {k: f"{v:.3g}" for k, v in values.items() if _headline(k)}
            self._bar.set_postfix(shown, refresh=False)
        return bad

    def _rate(self, done: int) -> float:
        """Compute images per second since the last log, over all processes."""
        (before, since), self._mark = self._mark, (done, time.monotonic())
        steps, seconds = done - before, max(self._mark[1] - since, 1e-9)
        return steps * self.recipe.batch_size(self.folder.stage) / seconds

    def _write(self, done: int, values: dict[str, float], kind: str) -> None:
        if self._metrics is not None:
            self._metrics.write(done, values, kind=kind, phase=position(self.phases, done - 1)[0])

    def validate(self, loader: Loader, done: int) -> dict[str, float]:
        """Score the validation faces: means over all processes, each face counted once; {} without one."""
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), device=self.accelerator.device)
        seed_all(self.recipe.run.seed, SAMPLE)
        for batch in loader.validation():
            for key, value in self.stage.validate(batch).items():
                sums[key] = sums.get(key, torch.zeros_like(count)) + value.detach().float() * len(batch)
            count += len(batch)
        if not sums:
            return {}
        flat = all_sum(self.accelerator, torch.stack([*sums.values(), count]))
        *totals, faces = flat.tolist()
        scores = {key: value / faces for key, value in zip(sums, totals, strict=True)}
        self._write(done, scores, "val")
        return scores

    def sample(self, loader: Loader, done: int) -> None:
        """Write a grid of pairs that stay the same through the run."""
        if self._fixed is None:
            self._fixed = loader.fixed(self.recipe.run.samples)
        seed_all(self.recipe.run.seed, SAMPLE)
        strips = [self.stage.sample(part).cpu() for part in self._fixed.split(len(self._fixed))]
        if self.accelerator.is_main_process:
            write_png(self.folder.samples / f"step_{done:08d}.png", stack_strips(torch.cat(strips)))

    def keep_bad_batch(self, loader: Loader, bad: NotFinite) -> Path:
        """Save the pairs of a step whose values were not finite; returns the file."""
        batch = loader.again(bad.step)
        name = f"not_finite_step_{bad.step:08d}_process_{self.accelerator.process_index}.safetensors"
        tensors = {
            key: value.detach().cpu().contiguous()
            for key, value in vars(batch).items()
            if isinstance(value, Tensor)  # its tags are texts, and stand in the data
        }
        save_file(tensors, self.folder.path / name, {key: str(value) for key, value in bad.values.items()})
        return self.folder.path / name


def _headline(name: str) -> bool:
    """Tell whether a scalar is shown in the progress bar."""
    return name.endswith(("total", "codes/distinct", "assoc/loss", "identity"))
