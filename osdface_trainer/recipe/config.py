"""A recipe: one TOML file that describes a whole model, as frozen dataclasses.

`[data]`, `[run]` and `[degrade]` serve both stages; `[vre]` (vre.py) is stage 1 and `[restorer]`
(restorer.py) stage 2. An unknown key or a value of another type is a ConfigError that names the key.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from osdface_core.errors import ConfigError

from ..data.augment import Augmentation
from ..data.check import Broken
from ..data.degrade import Enlarge, Jpeg
from ..data.degrade_profiles import Degradation, DegradationStage, named_profile
from . import settings
from .restorer import RestorerTraining
from .vre import VRETraining

RECIPES = Path(__file__).parents[1] / "recipes"
StageName = Literal["vre", "restorer"]

# Keys that change neither the weights nor their order of updates: a resumed run may change them.
# The faces may move to another folder: their fingerprint is compared instead.
FREE_KEYS = {
    "run": ("dir", "device", "max_minutes", "log_every", "sample_every", "checkpoint_every", "samples",
            "keep", "tensorboard", "wandb", "report"),
    "data": ("train", "val", "cache", "workers", "broken", "shards_gb"),
}  # fmt: skip
# Keys that change what is measured, how memory is laid out, or rounding: a resumed run says it took them.
HARMLESS_KEYS = (
    "run.validate_every", "run.stop_metric", "run.stop_mode", "run.stop_patience", "run.channels_last",
    "run.compile", "run.tf32", "vre.accumulate", "restorer.accumulate", "restorer.checkpoint_unet",
    "restorer.checkpoint_decoder", "restorer.validation.profiles", "restorer.validation.metrics",
)  # fmt: skip


@dataclass(frozen=True)
class DataSource:
    """One of `[[data.sources]]`.

    Attributes:
        path: as of `data.train`.
        ratio: so many of every sum of ratios samples are from here.
    """

    path: str
    ratio: int = 1

    def __post_init__(self) -> None:
        if not self.path or self.ratio < 1:
            raise ConfigError("a data source needs a path, and a whole number of 1 or more as ratio")


@dataclass(frozen=True)
class DataConfig:
    """`[data]`: where the aligned faces are (data/dataset.py, data/augment.py).

    Attributes:
        train, val: a folder, a manifest of `osdface prepare` (both may name the same one: its split column
            divides it), a shard pattern, or an index of shards, which are fetched while training runs; `val`
            may be empty.
        sources: several of them in place of `train`, mixed in whole-numbered ratios.
        shards_gb: of an index's fetched shards at most so many stay on the disk, for each process.
        size: side of the training images [px].
        cache: keep decoded images as uint8 in `cpu` memory or on the `device` (512² × 3 = 0.79 MB each).
        limit: use only the first so many training images of each source; 0 = all.
        variants: augmented and degraded versions per face; 0 makes a new one each time. A fixed number lets
            `restorer.keep_latents` keep what is computed from them.
        workers: decoding threads; 0 = one per core, at most 16.
        broken: all pictures are checked before the first step (once: the outcome is kept in run.dir); what is
            truncated or not square stops the run, or is left out and counted (`skip`).
        augment: mild changes of the clean faces; by default half of them are mirrored.
    """

    train: str = ""
    val: str = ""
    sources: tuple[DataSource, ...] = ()
    shards_gb: float = 100.0
    size: int = 512
    cache: Literal["none", "cpu", "device"] = "none"
    limit: int = 0
    variants: int = 0
    workers: int = 0
    broken: Broken = "stop"
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.train and self.sources:
            raise ConfigError("give one of train and sources")

    @property
    def training(self) -> tuple[DataSource, ...]:
        """Return all sources of training faces."""
        return self.sources or ((DataSource(self.train),) if self.train else ())


@dataclass(frozen=True)
class RunConfig:
    """`[run]`: everything around the mathematics.

    Attributes:
        dir: run folder; the stages write below it.
        seed: of weights, data order, degradation and noise.
        precision: of the networks' forward passes; losses and weights stay float32.
        device: `auto` is what accelerate finds; `cpu` forces the CPU.
        tf32: allow TensorFloat-32 matrix products in float32 parts (NVIDIA).
        channels_last: NHWC memory layout of images and convolutions; unset: where that is faster.
        compile: torch.compile the trained networks.
        max_minutes: stop cleanly, after a checkpoint, once this much time has passed; 0 = no limit.
        log_every, sample_every, validate_every, checkpoint_every: steps; 0 = never (checkpoint: at the end).
        samples: pairs in a sample grid.
        keep: checkpoints that stay on the disk.
        tensorboard, wandb: trackers beside metrics.jsonl; W&B needs its package and login.
        report: draw curves.png and report.html at the end of every call.
        stop_metric, stop_mode, stop_patience: early stop once the validation score has not improved for
            this many validations; patience 0 = never. What gets exported is the best of the start and all
            validations.
    """

    dir: str = "runs/osdface"
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu"] = "auto"
    tf32: bool = True
    channels_last: bool | None = None
    compile: bool = False
    max_minutes: float = 0.0
    log_every: int = 50
    sample_every: int = 1000
    validate_every: int = 1000
    checkpoint_every: int = 1000
    samples: int = 8
    keep: int = 3
    tensorboard: bool = True
    wandb: bool = False
    report: bool = True
    stop_metric: str = ""
    stop_mode: Literal["max", "min"] = "max"
    stop_patience: int = 0

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.keep < 1:
            raise ConfigError("log_every and keep: expected 1 or more")
        if self.stop_patience and not (self.stop_metric and self.validate_every):
            raise ConfigError("stop_patience needs stop_metric and validate_every")


@dataclass(frozen=True)
class DegradeConfig:
    """`[degrade]`: a named profile, a weighted mix of named ones, or own stages (data/degrade_profiles.py).

    Attributes:
        profile: name; `dual_stage` when neither `mix` nor `stages` is given.
        mix: name → weight.
        stages: `[[degrade.stages]]`, run in order.
        enlarge: how the small picture comes back to the face's size.
        jpeg: `real` is libjpeg on the CPU, `simulated` tensor code that a GPU need not wait for; `auto` takes
            the real one on a CPU and the simulated one elsewhere.
        grey_prob, colour_shift, colour_prob, eight_bit: of own stages and mixes, see profiles.Degradation.
    """

    profile: str = ""
    mix: dict[str, float] = field(default_factory=dict)
    stages: tuple[DegradationStage, ...] = ()
    enlarge: Enlarge = "bilinear"
    jpeg: Jpeg = "auto"
    grey_prob: float = 0.0
    colour_shift: float = 0.0
    colour_prob: float = 0.0
    eight_bit: bool = True

    def __post_init__(self) -> None:
        if sum(map(bool, (self.profile, self.mix, self.stages))) > 1:
            raise ConfigError("give one of profile, mix and stages")
        self.degradation()

    def degradation(self) -> Degradation:
        """Build the profile that this table describes."""
        if not (self.mix or self.stages):
            return named_profile(self.profile or "dual_stage")
        mix = tuple((weight, named_profile(name)) for name, weight in self.mix.items())
        return Degradation(
            "custom", self.stages, mix, self.grey_prob, self.colour_shift, self.colour_prob, self.eight_bit
        )


@dataclass(frozen=True)
class Recipe:
    """The whole file."""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    vre: VRETraining = field(default_factory=VRETraining)
    restorer: RestorerTraining = field(default_factory=RestorerTraining)

    def batch_size(self, stage: StageName) -> int:
        """Return the images per optimiser step over all processes."""
        return self.vre.batch_size if stage == "vre" else self.restorer.batch_size

    def accumulate(self, stage: StageName) -> int:
        """Return the micro-batches per optimiser step and process."""
        return self.vre.accumulate if stage == "vre" else self.restorer.accumulate

    def phases(self, stage: StageName) -> dict[str, int]:
        """Return the optimiser steps by phase, in order."""
        return self.vre.steps if stage == "vre" else {"restorer": self.restorer.steps}


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped one by name, and apply `--set` assignments.

    Args:
        source: path of a TOML file, or the name of a shipped one. Its key `extends` names another recipe,
            whose keys count where it has none.
        overrides: `table.key=value` texts.
    Raises:
        ConfigError: naming the file or the key.
    """
    tables = _read(source)
    for assignment in overrides:
        settings.override(tables, assignment)
    return settings.build(Recipe, tables, "")


def _read(source: str | Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the tables of a recipe over those of the one that it `extends`."""
    path = Path(source)
    shipped = RECIPES / f"{source}.toml"
    if not path.exists():
        if not shipped.is_file():
            names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
            raise ConfigError(f"recipe {source} does not exist; give a TOML file or a shipped one: {names}")
        path = shipped
    if path in inside:
        raise ConfigError(f"recipe {path} extends itself; take the key out of it")
    tables = settings.read_toml(path)
    base = tables.pop("extends", "")
    return settings.merge(_read(base, (*inside, path)), tables) if base else tables


def for_processes(recipe: Recipe, count: int) -> Recipe:
    """Turn a batch size that each process has for itself into that of all."""
    restorer = recipe.restorer
    if not restorer.per_process:
        return recipe
    return replace(
        recipe, restorer=replace(restorer, batch_size=count * restorer.batch_size, per_process=False)
    )


def with_steps(recipe: Recipe, faces: int) -> Recipe:
    """Turn epochs into optimiser steps, rounded up, for a number of training faces."""
    vre, restorer = recipe.vre, recipe.restorer

    def timed(table: Any, batch_size: int) -> Any:
        steps = math.ceil(table.epochs * faces / batch_size)
        return replace(table, steps=steps, epochs=0.0) if table.epochs else table

    phases = {name: timed(getattr(vre, name), vre.batch_size) for name in vre.steps}
    return replace(recipe, vre=replace(vre, **phases), restorer=timed(restorer, restorer.batch_size))


def _open_phases(saved: Recipe, current: Recipe, stage: StageName, done: int) -> list[str]:
    """Keys of the phases whose number of steps may change: old and new end lie ahead."""
    old, new, keys = 0, 0, []
    for phase, steps in saved.phases(stage).items():
        old, new = old + steps, new + current.phases(stage)[phase]
        if done <= min(old, new):
            keys.append("restorer.steps" if stage == "restorer" else f"vre.{phase}.steps")
    return keys


def stage_tables(recipe: Recipe, stage: StageName) -> dict[str, Any]:
    """Select the tables that decide the weights of a stage, without the keys a resumed run may change."""
    tables = {key: value for key, value in asdict(recipe).items() if key in ("data", "run", "degrade", stage)}
    tables["data"]["sources"] = [source["ratio"] for source in tables["data"]["sources"]]
    for name, free in FREE_KEYS.items():
        tables[name] = {key: value for key, value in tables[name].items() if key not in free}
    return tables


def check_resumable(
    saved: Recipe, current: Recipe, stage: StageName, folder: Path, done: int = 0
) -> list[str]:
    """Refuse to continue a run with a recipe that would train another model.

    More or fewer steps are taken for the phase that is under way and for those that follow it.

    Args:
        done: optimiser steps that the run has made.
    Returns:
        the changes that were taken beyond `FREE_KEYS`, e.g. `["restorer.steps 100 -> 200"]`.
    Raises:
        ConfigError: with the differing keys.
    """
    before, after = stage_tables(saved, stage), stage_tables(current, stage)
    differing = settings.differences(before, after)
    taken = {*HARMLESS_KEYS, *_open_phases(saved, current, stage, done)}
    if changed := [key for key in differing if key not in taken]:
        raise ConfigError(
            f"{folder} was started with another recipe; these keys differ: {', '.join(changed)}. "
            "Restore them, choose another run.dir, or start over with --fresh"
        )
    return [f"{key} {_at(before, key)} -> {_at(after, key)}" for key in differing]


def _at(tables: Any, key: str) -> Any:
    """The value at a dotted key."""
    for name in key.split("."):
        tables = tables[name]
    return tables
