"""What looks at a run while it trains: progress bar, journal, hold-out scores, sample grids, bad batches."""

import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from .config import Recipe
from .feed import Feed
from .folder import RunFolder
from .journal import History, Journal, NotFinite
from .launch import SAMPLE, all_mean, all_sum, seed_all
from .pictures import stack_strips, write_png
from .stage import Batch, Stage, position


class Observer:
    """Reads values off the device only when they are due."""

    def __init__(
        self, recipe: Recipe, stage: Stage, accelerator: Accelerator, folder: RunFolder, bar: bool
    ) -> None:
        self.recipe, self.stage, self.accelerator, self.folder = recipe, stage, accelerator, folder
        self.phases = recipe.phases(folder.stage)
        several = accelerator.num_processes > 1
        self.history = History((lambda x: all_mean(accelerator, x)) if several else None)
        self._show, self._bar = bar, None
        self._mark = (0, time.monotonic())
        self._journal: Journal | None = None
        self._fixed: Batch | None = None

    def open(self, start: int, total: int) -> None:
        """Start the bar and the journal; lines past `start` belong to work that is done again."""
        self._bar = tqdm(
            total=total, initial=start, unit="step", desc=f"train {self.folder.stage}",
            disable=not self._show, dynamic_ncols=True, smoothing=0.05,
        )  # fmt: skip
        self._mark = (start, time.monotonic())
        if self.accelerator.is_main_process:
            self._journal = Journal(
                self.folder.path, tensorboard=self.recipe.run.tensorboard, resume_at=start
            )

    def close(self) -> None:
        """Close bar and journal."""
        for thing in (self._bar, self._journal):
            if thing is not None:
                thing.close()

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def log(self, done: int) -> NotFinite | None:
        """Write the means since the last call; gives the first value that was not finite, if any."""
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
        """Images per second since the last log, over all processes."""
        (before, since), self._mark = self._mark, (done, time.monotonic())
        steps, seconds = done - before, max(self._mark[1] - since, 1e-9)
        return steps * self.recipe.batch_size(self.folder.stage) / seconds

    def _write(self, done: int, values: dict[str, float], kind: str) -> None:
        if self._journal is not None:
            self._journal.write(done, values, kind=kind, phase=position(self.phases, done - 1)[0])

    def validate(self, feed: Feed, done: int) -> dict[str, float]:
        """Scores of the hold-out, means over all processes, each face counted once; {} without one."""
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), device=self.accelerator.device)
        seed_all(self.recipe.run.seed, SAMPLE)
        for batch in feed.holdout():
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

    def sample(self, feed: Feed, done: int) -> None:
        """Write a grid of pairs that stay the same through the run."""
        if self._fixed is None:
            self._fixed = feed.fixed(self.recipe.run.samples)
        seed_all(self.recipe.run.seed, SAMPLE)
        strips = [self.stage.sample(part).cpu() for part in self._fixed.split(len(self._fixed))]
        if self.accelerator.is_main_process:
            write_png(self.folder.samples / f"step_{done:08d}.png", stack_strips(torch.cat(strips)))

    def keep_bad_batch(self, feed: Feed, bad: NotFinite) -> Path:
        """Save the pairs of a step whose values were not finite; returns the file."""
        batch = feed.again(bad.step)
        name = f"not_finite_step_{bad.step:08d}_process_{self.accelerator.process_index}.safetensors"
        fields = {"hq": batch.hq, "lq": batch.lq, "index": batch.index, "flip": batch.flip}
        tensors = {key: value.detach().cpu().contiguous() for key, value in fields.items()}
        save_file(tensors, self.folder.path / name, {key: str(value) for key, value in bad.values.items()})
        return self.folder.path / name


def _headline(name: str) -> bool:
    """Scalars worth a place in the progress bar."""
    return name.endswith(("total", "codes/distinct", "assoc/loss", "identity"))


def on_terminal() -> bool:
    """Whether somebody watches standard error."""
    return sys.stderr.isatty()
