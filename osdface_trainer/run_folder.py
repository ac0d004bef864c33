"""The run folder: who may write to it, what lies where, and the recipe it was started with.

run.dir/
    export.safetensors          newest result of the newest stage
    checked.npy                 which pictures were read to their end, see data/check.py
    vre/ or restorer/           one stage
        recipe.toml             resolved recipe
        export.safetensors      newest result of this stage
        checkpoints/step_*/     see checkpointing.py
        metrics.jsonl, tensorboard/, samples/*.png, report.html
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from osdface_core.checkpoint import read_header
from osdface_core.console import complain
from osdface_core.errors import CheckpointError, ConfigError
from osdface_core.files import replacing, write_text

from .checkpointing import list_checkpoints
from .recipe import settings
from .recipe.config import Recipe, StageName, check_resumable


@dataclass(frozen=True)
class RunFolder:
    """Paths of one stage of a run."""

    root: Path
    stage: StageName

    @property
    def path(self) -> Path:
        return self.root / self.stage

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def exports(self) -> tuple[Path, Path]:
        """Name the stage's own export and the run's."""
        return self.path / "export.safetensors", self.root / "export.safetensors"


def open_run(recipe: Recipe, stage: StageName, *, fresh: bool = False, resume: bool = False) -> RunFolder:
    """Create the stage's folder, or check that it may be continued; the resolved recipe is saved in it.

    A run that stopped before its first checkpoint, because a path was wrong perhaps, may change its recipe.

    Args:
        fresh: start over; a former run of this stage is kept beside it as `vre.1`, `vre.2`, …
        resume: insist that there is something to continue.
    Raises:
        ConfigError: another recipe started it, there is nothing to resume, or it cannot be written.
    """
    folder = RunFolder(Path(recipe.run.dir).expanduser(), stage)
    if fresh and resume:
        raise ConfigError("--fresh starts over and --resume continues: give one of them")
    if resume and not folder.recipe.is_file():
        raise ConfigError(f"nothing to resume in {folder.path}: no run was started there")
    try:
        if fresh and folder.path.exists():
            with only_one(folder):  # not under a running process
                pass
            folder.path.rename(_free_name(folder.path))
        taken, _ = continues(folder, recipe)
        if taken:
            complain(f"continuing with changes to the recipe: {', '.join(taken)}")
        folder.samples.mkdir(parents=True, exist_ok=True)
        write_text(folder.recipe, settings.to_toml(recipe))
    except OSError as error:
        raise ConfigError(f"run folder {folder.path} cannot be written: {error}") from error
    return folder


def continues(folder: RunFolder, recipe: Recipe) -> tuple[list[str], int]:
    """Compare a recipe with the one that started a folder.

    Returns:
        the changes that are taken, and the steps done; [] and 0 where nothing is to continue.
    Raises:
        ConfigError: the recipe would train another model.
    """
    checkpoints = list_checkpoints(folder.checkpoints)
    if not (checkpoints and folder.recipe.is_file()):
        return [], 0
    done = int(checkpoints[-1].name.removeprefix("step_"))
    saved = settings.build(Recipe, settings.known_keys(Recipe, settings.read_toml(folder.recipe)), "")
    return check_resumable(saved, recipe, folder.stage, folder.path, done), done


@contextmanager
def only_one(folder: RunFolder) -> Iterator[None]:
    """Keep a second process from training in the same folder; the lock dies with its process.

    Raises:
        ConfigError: somebody trains there already.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder.path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process trains in {folder.path}: wait for it, or use another run.dir"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate


def publish(folder: RunFolder) -> None:
    """Copy the stage's export to the run's.

    A run's export that holds more than the new one (a restorer, and the VRE was trained again) is kept as
    `export.previous.safetensors`.

    Raises:
        CheckpointError: it cannot be written.
    """
    own, shared = folder.exports
    try:
        if shared.exists() and _has_more(shared, own):
            shared.replace(shared.with_name("export.previous.safetensors"))
        with replacing(shared) as temporary:
            shutil.copyfile(own, temporary)
    except OSError as error:
        raise CheckpointError(f"export {shared} cannot be written: {error}") from error


def _has_more(former: Path, new: Path) -> bool:
    """Tell whether an export has parts that another lacks; an unreadable one has none worth keeping."""
    try:
        before, after = ({n.split(".", 1)[0] for n in read_header(path)[2]} for path in (former, new))
    except CheckpointError:
        return False
    return bool(before - after)
