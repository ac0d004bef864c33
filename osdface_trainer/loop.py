"""The training loop: order, seeds, checkpoints and stops. The mathematics is in the stages.

The same command starts and continues a run. Every step draws its randomness from (seed, step, process), data
order is a function of the step, and checkpoints hold the rest; so a run that was killed and continued ends
with the same weights as one that was not (bit for bit on a CPU).
"""

import errno
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from osdface_core.checkpoint import save_checkpoint
from osdface_core.errors import CheckpointError, ConfigError

from . import checkpointing, snapshot
from .distributed import INIT, STEP, all_sum, make_accelerator, on_main, seed_all
from .interrupt import StopRequest
from .loader import Loader, counted
from .logging import DivergedError, NotFinite, TrainingLogger
from .provenance import provenance
from .recipe.config import Recipe, StageName, for_processes
from .report import write_report
from .run_folder import RunFolder, only_one, open_run, publish
from .stage import FaceBatch, TrainingStage
from .weight_files import require_weights

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the disk, in the quota, in the file


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended, and what it exported.

    Attributes:
        reason: `done`, `time`, `early stop` or `interrupted`.
        best: step whose weights are exported where `run.stop_metric` chooses, 0 = those it started from.
    """

    reason: str
    step: int
    total: int
    export: Path
    report: Path | None
    best: int | None = None


@dataclass
class TrainingProgress:
    """What a checkpoint holds beyond the stage.

    Attributes:
        step: optimiser steps done.
        data: fingerprint of the training faces.
        best, best_step: best validation score so far and where; stale: validations since then.
    """

    step: int = 0
    data: str = ""
    best: float | None = None
    best_step: int = 0
    stale: int = 0


def train(
    recipe: Recipe, stage_name: StageName, *, fresh: bool = False, resume: bool = False, quiet: bool = False
) -> Outcome:
    """Start or continue a stage of a run.

    Args:
        fresh: start over (the former run is kept under another name); resume: insist on continuing.
        quiet: no progress bar.
    Raises:
        ConfigError: recipe, folder or data do not fit.
        CheckpointError: weights are missing, or the disk is full.
        DivergedError: a value was not finite; the batch is saved and the error says where.
    """
    began = time.monotonic()
    path = Path(recipe.run.dir).expanduser() / stage_name
    accelerator = make_accelerator(recipe.run, path / "tensorboard")
    recipe = counted(for_processes(recipe, accelerator.num_processes))
    on_main(accelerator, lambda: require_weights(recipe, stage_name))
    folder = on_main(accelerator, lambda: open_run(recipe, stage_name, fresh=fresh, resume=resume))
    with ExitStack() as stack:
        on_main(accelerator, lambda: stack.enter_context(only_one(folder)))
        try:
            return _train(recipe, folder, accelerator, quiet, began)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise CheckpointError(
                f"{folder.path} cannot be written: {error.strerror}; free some space, then the same command "
                "continues"
            ) from error


def _train(recipe: Recipe, folder: RunFolder, accelerator: Accelerator, quiet: bool, began: float) -> Outcome:
    bar = accelerator.is_main_process and not quiet and sys.stderr.isatty()
    loader = Loader(recipe, folder.stage, accelerator, progress=bar)
    seed_all(recipe.run.seed, INIT)
    stage = build_stage(recipe, folder.stage, accelerator)
    loop = Loop(
        recipe, stage, loader, accelerator, TrainingLogger(recipe, stage, accelerator, folder, bar), began
    )
    loop.restore()
    return loop.run()


def build_stage(recipe: Recipe, name: StageName, accelerator: Accelerator) -> TrainingStage:
    """Import and build a stage."""
    if name == "vre":
        from .vre import stage as vre_stage

        return vre_stage.build(recipe, accelerator)
    from .restorer import stage as restorer_stage

    return restorer_stage.build(recipe, accelerator)


class Loop:
    """One stage of one run on this process; `began`: when the time limit started to count [s, monotonic]."""

    def __init__(
        self,
        recipe: Recipe,
        stage: TrainingStage,
        loader: Loader,
        accelerator: Accelerator,
        logger: TrainingLogger,
        began: float,
    ) -> None:
        self.recipe, self.cfg, self.stage, self.loader = recipe, recipe.run, stage, loader
        self.accelerator, self.logger, self.began = accelerator, logger, began
        self.folder: RunFolder = logger.folder
        self.several = accelerator.num_processes > 1
        # A CPU has no queue to wait for, so a value that is not finite is noticed in its own step.
        self.eager = accelerator.device.type == "cpu" and not self.several
        self.progress = TrainingProgress()

    def restore(self) -> None:
        """Load the newest complete checkpoint of the folder, if there is one."""
        warnings: list[str] = []
        found = checkpointing.latest_state(self.folder.checkpoints, warnings)
        if found is not None:
            snapshot.restore(self.stage, self.accelerator, found[1])
            self.progress = TrainingProgress(**found[1]["progress"])
        data = self.loader.train.fingerprint()
        if self.progress.data not in ("", data):
            raise ConfigError(
                f"data.train holds other faces than when {self.folder.path} was started: restore them, or "
                "start over with --fresh"
            )
        self.progress.data = data
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpointing.remove_partial(self.folder.checkpoints)
            for line in warnings:
                tqdm.write(line)

    def run(self) -> Outcome:
        """Train until the steps are done, the time is up, the score stalls or a signal asks to stop."""
        start, total, reason = self.progress.step, self.stage.total_steps, "done"
        self.logger.open(start, total)
        try:
            with StopRequest() as stop:
                self._judge_start()
                batches = self.loader.batches(start)
                for step in range(start, total):
                    if ended := self._reason_to_stop(stop, step > start):
                        reason = ended
                        break
                    self._step(next(batches), step)
                self._finish()
        finally:
            self.logger.close()
        report = self._report() if self.cfg.report else None
        best = None if self.progress.best is None else self.progress.best_step
        return Outcome(reason, self.progress.step, total, self.folder.exports[0], report, best)

    def _report(self) -> Path:
        return on_main(self.accelerator, lambda: write_report(self.folder.path, self.folder.stage))

    def _reason_to_stop(self, stop: StopRequest, moved: bool) -> str:
        """Tell why to stop before the next step, the same on every process; "" to go on.

        A started process makes at least one step, so that a run with a tiny time limit still advances.
        """
        if 0 < self.cfg.stop_patience <= self.progress.stale:
            return "early stop"
        late = 0 < self.cfg.max_minutes * 60 <= time.monotonic() - self.began
        code = 1000 if stop.requested else int(late and moved)
        if self.several:
            if self.progress.step % self.cfg.log_every:
                return ""
            code = int(all_sum(self.accelerator, torch.tensor(code, device=self.accelerator.device)))
        return "interrupted" if code >= 1000 else "time" if code else ""

    def _step(self, batch: FaceBatch, step: int) -> None:
        """Make one optimiser step and what is due after it."""
        seed_all(self.cfg.seed, STEP, step, self.accelerator.process_index)
        history, logger, done = self.logger.history, self.logger, step + 1
        history.add(step, self.stage.step(batch, step))
        self.progress.step = done
        logger.advance()
        if self._due(self.cfg.log_every) or (self.eager and history.latest_is_broken()):
            self._log()
        if self.loader.val is not None and self._due(self.cfg.validate_every):
            self._judge(logger.validate(self.loader, done))
        if self._due(self.cfg.sample_every) and done < self.stage.total_steps:
            logger.sample(self.loader, done)
        if self._due(self.cfg.checkpoint_every) and done < self.stage.total_steps:
            self._save()

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _log(self) -> None:
        """Write the log; DivergedError when a value since the last one was not finite."""
        bad = self.logger.log(self.progress.step)
        if bad is not None:
            self._diverged(bad)

    def _diverged(self, bad: NotFinite) -> None:
        path = self.logger.keep_bad_batch(self.loader, bad)
        kept = [p.name for p in checkpointing.list_checkpoints(self.folder.checkpoints)][-1:]
        raise DivergedError(
            f"training of {self.folder.stage} diverged at {bad}. The batch is in {path}; the last checkpoint "
            f"is {kept[0] if kept else 'none'}. Lower the learning rate or clip harder, then --fresh"
        )

    def _judge_start(self) -> None:
        """Score what the run starts from, so that a training that only harms exports no worse model."""
        if not self.cfg.stop_metric or self.progress.best is not None or self.loader.val is None:
            return
        if scores := self.logger.validate(
            self.loader, self.progress.step
        ):  # none where nothing is learned yet
            self._judge(scores)

    def _judge(self, scores: dict[str, float]) -> None:
        """Export what is best by the stop metric so far, and count how long it has not improved."""
        if not self.cfg.stop_metric:
            return
        if self.cfg.stop_metric not in scores:
            raise ConfigError(f"run.stop_metric is {self.cfg.stop_metric}: use {', '.join(scores)}")
        score, sign = scores[self.cfg.stop_metric], 1 if self.cfg.stop_mode == "max" else -1
        if self.progress.best is None or sign * score > sign * self.progress.best:
            self.progress.best, self.progress.best_step, self.progress.stale = score, self.progress.step, 0
            self._export()
        else:
            self.progress.stale += 1

    def _save(self) -> None:
        """Write checkpoint and export; steps not logged yet are looked at first, they may hold a NaN."""
        self._log()
        state = {**snapshot.collect(self.stage, self.accelerator), "progress": asdict(self.progress)}
        step = self.progress.step
        on_main(
            self.accelerator,
            lambda: checkpointing.save_state(self.folder.checkpoints, step, state, keep=self.cfg.keep),
        )
        if not (self.cfg.stop_metric and self.progress.best is not None):
            self._export()

    def _export(self) -> None:
        """Bring the exports of the stage and of the run up to date."""
        config, tensors, facts = self.stage.export()
        done, data = self.progress.step, self.progress.data
        training = provenance(self.recipe, self.folder.stage, done, data, facts)

        def write() -> None:
            save_checkpoint(self.folder.exports[0], tensors, config, training)
            publish(self.folder)

        on_main(self.accelerator, write)

    def _finish(self) -> None:
        """Write the last checkpoint, export and samples."""
        if self.progress.step:
            self._save()
            self.logger.sample(self.loader, self.progress.step)
