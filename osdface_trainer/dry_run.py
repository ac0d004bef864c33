"""`--dry-run`: the run that would happen, and what would keep it from happening; writes nothing."""

import sys
from collections.abc import Iterator
from pathlib import Path

from osdface_core.console import say
from osdface_core.errors import ConfigError, OSDFaceError

from .data.check import CheckedFiles, describe_broken, find_broken, without_broken
from .loader import Split, checked_files, counted, listed_faces
from .parameters import describe
from .recipe.config import Recipe, StageName
from .recipe.settings import to_toml
from .run_folder import RunFolder, continues
from .weight_files import check_weights

Line = tuple[str, bool]
"""What is printed, and whether it keeps the run from starting although the recipe names what it is about."""


def dry_run(
    recipe: Recipe, stage: StageName, *, fresh: bool = False, resume: bool = False, quiet: bool = False
) -> int:
    """Print recipe, steps, parameters, weights, faces, and where the run would begin.

    A place that the recipe leaves open (`data.train = ""`) is listed as missing; one that it names and that
    cannot be used is an error.

    Returns: 0; 2 when something that the recipe names keeps the run from starting.
    """
    progress = not quiet and sys.stderr.isatty()
    faces = list(_faces(recipe, progress))
    if not any(fails for _, fails in faces):
        recipe = counted(recipe)
    say(to_toml(recipe))
    try:
        say(describe(recipe, stage))
    except OSDFaceError as error:  # `restorer.init` decides the architecture; its file is named again below
        say(f"parameters are unknown: {error}")
    lines = [*_weights(recipe, stage), *faces, _start(recipe, stage, fresh, resume)]
    for text, _ in lines:
        say(text)
    return 2 if any(fails for _, fails in lines) else 0


def _weights(recipe: Recipe, stage: StageName) -> Iterator[Line]:
    for check in check_weights(recipe, stage):
        if check.problem:
            yield f"{check.key}: MISSING: {check.problem}", check.given
        else:
            yield f"{check.key}: {', '.join(map(str, check.files))}", False


def _faces(recipe: Recipe, progress: bool) -> Iterator[Line]:
    checked = CheckedFiles(checked_files(recipe), keep=False)
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        count = 0
        try:
            for name, items, source in listed_faces(recipe, split):
                count += 1
                broken = find_broken(items, checked, workers=recipe.data.workers, progress=progress)
                kept = without_broken(items, broken, recipe.data.broken, name)
                yield f"{name}: {len(kept):,} faces from {source.path}", False
                if broken:
                    yield f"{describe_broken(broken, len(items), name)}; skipped", False
        except OSDFaceError as error:
            yield f"data.{split}: UNUSABLE: {error}", True
            continue
        if not count:
            yield f"data.{split}: {'MISSING: not set' if split == 'train' else 'none'}", False


def _start(recipe: Recipe, stage: StageName, fresh: bool, resume: bool) -> Line:
    """Where the run would begin."""
    folder = RunFolder(Path(recipe.run.dir).expanduser(), stage)
    total = sum(recipe.phases(stage).values())
    if fresh:
        kept = " (the former run is kept beside it)" if folder.path.exists() else ""
        return f"{folder.path}: would start over at step 0 of {total:,}{kept}", False
    try:
        taken, done = continues(folder, recipe)
    except ConfigError as error:
        return f"{folder.path}: REFUSED: {error}", True
    if resume and not done:
        return f"{folder.path}: REFUSED: nothing to resume, no checkpoint is there", True
    changes = f", with changes to the recipe: {', '.join(taken)}" if taken else ""
    verb = "is done" if done >= total else "would continue" if done else "would start"
    return f"{folder.path}: {verb} at step {done:,} of {total:,}{changes}", False
