"""Training and validation pairs: order (dataset.py), augmentation (augment.py), degradation (degrade.py).

Everything is a function of the seed and the step, so any batch of a run can be made again.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from osdface_core.console import complain
from osdface_core.errors import ConfigError

from . import distributed
from .data.augment import augment
from .data.check import CheckedFiles, describe_broken, find_broken, without_broken
from .data.dataset import Batches, CleanFaces, FaceDataset
from .data.degrade import degrade
from .data.faces import face_tags
from .data.sources import Faces, list_faces
from .distributed import SAMPLE, local_batch
from .recipe.config import DataSource, Recipe, StageName, with_steps
from .seeds import mix
from .stage import FaceBatch

Split = Literal["train", "val"]


class Listed(NamedTuple):
    """A source of faces, under its name for messages."""

    name: str
    items: Faces
    source: DataSource


def listed_faces(recipe: Recipe, split: Split) -> Iterator[Listed]:
    """List the pictures of each source of a split; of a limited training set only those that can be drawn."""
    data = recipe.data
    sources = data.training if split == "train" else (DataSource(data.val),) if data.val else ()
    for number, source in enumerate(sources):
        name = f"data.sources[{number}]" if split == "train" and data.sources else f"data.{split}"
        items = list_faces(source.path, split=split, limit=data.shards_gb * 1e9)
        yield Listed(name, items[: data.limit] if split == "train" and data.limit else items, source)


def counted(recipe: Recipe) -> Recipe:
    """Count the steps of phases that are given in epochs; the same recipe where none is."""
    timed = (recipe.vre.hq, recipe.vre.lq, recipe.vre.assoc, recipe.restorer)
    if not recipe.data.training or not any(table.epochs for table in timed):
        return recipe
    return with_steps(recipe, sum(len(listed.items) for listed in listed_faces(recipe, "train")))


def checked_files(recipe: Recipe) -> Path:
    """Return where the outcome of checking the pictures is kept; both stages of a run share it."""
    return Path(recipe.run.dir).expanduser() / "checked.npy"


def _usable(recipe: Recipe, split: Split, accelerator: Accelerator, progress: bool) -> list[Listed]:
    """The pictures of a split that can be read; the first process looks at them for all."""
    checked, usable = CheckedFiles(checked_files(recipe)), []
    for listed in listed_faces(recipe, split):
        broken = distributed.on_main(
            accelerator,
            partial(find_broken, listed.items, checked, workers=recipe.data.workers, progress=progress),
        )
        kept = without_broken(listed.items, broken, recipe.data.broken, listed.name)
        if broken and accelerator.is_main_process:
            complain(f"{describe_broken(broken, len(listed.items), listed.name)}; skipped")
        usable.append(listed._replace(items=kept))
    return usable


class Loader:
    """Makes the batches of one process for one stage.

    Raises:
        ConfigError: no faces where the recipe says, or a batch that does not divide by the processes.
    """

    def __init__(self, recipe: Recipe, stage: StageName, accelerator: Accelerator, progress: bool) -> None:
        data = recipe.data
        self.recipe, self.device = recipe, accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.batch_size = local_batch(recipe.batch_size(stage), recipe.accumulate(stage), accelerator)
        self.micro_batch = self.batch_size // recipe.accumulate(stage)
        self.profile = recipe.degrade.degradation()
        self.tagged = stage == "restorer" and recipe.restorer.prompt == "text"
        if not data.training:
            raise ConfigError(
                "data.train is empty: name a folder of aligned faces, e.g. --set data.train=faces"
            )
        first, *more = _usable(recipe, "train", accelerator, progress)
        self.train = FaceDataset(
            first.items, data.size, more=[listed.items for listed in more],
            ratios=[listed.source.ratio for listed in (first, *more)], cache=data.cache, device=self.device,
            workers=data.workers, progress=progress, skip=data.broken == "skip",
        )  # fmt: skip
        val = _usable(recipe, "val", accelerator, progress)
        self.val = FaceDataset(val[0].items, data.size, workers=data.workers) if val else None

    def batches(self, start: int) -> Iterator[FaceBatch]:
        """Yield training batches without end from step `start` on."""
        seed, variants = self.recipe.run.seed, self.recipe.data.variants
        faces = Batches(
            self.train,
            self.batch_size,
            seed,
            start,
            self.rank,
            self.world,
            device=self.device,
            variants=variants,
        )
        return (self._pair(batch) for batch in faces)

    def again(self, step: int) -> FaceBatch:
        """Make the batch again that this process saw in a step."""
        return next(self.batches(step))

    def _pair(self, faces: CleanFaces) -> FaceBatch:
        hq = augment(faces.hq, faces.seeds, self.recipe.data.augment)
        tags = self._tags(self.train, faces.indices.tolist())
        return FaceBatch(hq, self._degrade(hq, faces.seeds), faces.indices, tags)

    def _tags(self, source: FaceDataset, indices: list[int]) -> tuple[str, ...]:
        return tuple(face_tags(source.item(index)) for index in indices) if self.tagged else ()

    def _degrade(self, hq: Tensor, seeds: Sequence[int] | Tensor) -> Tensor:
        how = self.recipe.degrade
        return degrade(hq, self.profile, seeds, jpeg=how.jpeg, enlarge=how.enlarge)

    def fixed(self, count: int) -> FaceBatch:
        """Make `count` pairs, always the same, spread over the validation faces, else the training faces."""
        source = self.val or self.train
        return self._plain(source, source.spread(count))

    def validation(self) -> Iterator[FaceBatch]:
        """Yield this process's share of the validation faces, each face once, with fixed degradations.

        Sharded networks need all processes in every pass, and a process without a face would leave the others
        waiting for its scores: then every process takes all of them.
        """
        count = len(self.val) if self.val else 0
        alike = distributed.asked_for() or count < self.world
        remaining = iter(range(count) if alike else range(self.rank, count, self.world))
        while chunk := list(islice(remaining, self.micro_batch)):
            yield self._plain(self.val or self.train, chunk)

    def _plain(self, source: FaceDataset, indices: list[int]) -> FaceBatch:
        """Load faces unchanged and degrade them with seeds that depend on their position only."""
        hq: Tensor = source.get(indices).to(self.device).float() / 255
        seeds = [mix(self.recipe.run.seed, SAMPLE, index) for index in indices]
        names = torch.tensor(indices if source is self.train else [-1 - index for index in indices])
        return FaceBatch(hq, self._degrade(hq, seeds), names, self._tags(source, indices))
