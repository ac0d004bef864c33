"""Aligned faces as uint8 tensors, and the batches of each process."""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from osdface_core.console import complain
from osdface_core.errors import ConfigError, ImageError

from ..seeds import mix
from .faces import FaceFile
from .order import Mixed, Shuffled, Streams
from .prefetch import prefetch
from .shards import StreamedFaces
from .sources import data_hash, decode, list_faces

Cache = Literal["none", "cpu", "device"]


class CleanFaces(NamedTuple):
    """One batch of one process. `hq`: (B, 3, R, R); `seeds`, `indices`: (B,) int64 (CPU); `step`: number."""

    hq: Tensor
    seeds: Tensor
    indices: Tensor
    step: int


class FaceDataset:
    """Aligned faces of one resolution.

    Args:
        source: what `list_faces` takes, or the items themselves.
        more: further sources, numbered behind the first, as items.
        ratios: how many samples of each source are in every sum(ratios) samples; default: one of each.
        resolution: side [px]; other sizes are resized with antialiasing.
        cache: "none" decodes on demand; "cpu" and "device" decode everything once and keep it as
            one uint8 tensor there (0.79 MB per 512² face), so that a step never waits for the disk.
        device: for cache="device".
        split: rows of a manifest to keep ("train", "val").
        workers: decoding threads; 0 = one per core, at most 16.
        progress: show a bar while the cache is filled.
        skip: in the place of a streamed face that cannot be used show the one after it.
    """

    def __init__(
        self,
        source: str | Path | Sequence[FaceFile],
        resolution: int = 512,
        *,
        more: Sequence[Sequence[FaceFile]] = (),
        ratios: Sequence[int] = (),
        cache: Cache = "none",
        device: torch.device | str = "cpu",
        split: str | None = None,
        workers: int = 0,
        progress: bool = False,
        skip: bool = False,
    ) -> None:
        first = list_faces(source, split=split) if isinstance(source, str | Path) else source
        self.parts = (first, *more)
        if not all(map(len, self.parts)):
            raise ConfigError("the data set is empty")
        self.ratios = ratios or [1] * len(self.parts)
        self.streamed = any(isinstance(part, StreamedFaces) for part in self.parts)
        if self.streamed and cache != "none":
            raise ConfigError(f"faces that are streamed by a shard index are not kept: data.cache is {cache}")
        self._skip = skip
        self.resolution = resolution
        self.workers = workers or min(16, os.cpu_count() or 1)
        self._cache: Tensor | None = None
        if cache != "none":
            self._cache = self._decode_all(torch.device(device if cache == "device" else "cpu"), progress)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Tensor:
        """Return a face, (3, R, R) uint8, on the device of the cache or the CPU. Raises ImageError."""
        if self._cache is not None:
            return self._cache[index]
        for last in (False, False, True) if self.streamed else (True,):  # a passed shard may go meanwhile
            try:
                pixels = decode(self.item(index), self.resolution)
                return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
            except ImageError as error:
                if last and not (self.streamed and self._skip):
                    raise
                problem = error
        complain(f"{problem}; the face after it is shown")
        return self[(index + 1) % len(self)]

    def item(self, index: int) -> FaceFile:
        """Return where a face lies."""
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    def spread(self, count: int) -> list[int]:
        """Choose up to `count` faces: spread over all, or the first where shards would have to be fetched."""
        count = min(count, len(self))
        return [i if self.streamed else i * len(self) // count for i in range(count)]

    def order(self, lanes: int, seed: int) -> Mixed:
        """Return the order of training for `lanes` samples in a global batch."""
        orders = [
            Streams(part, lanes, seed + at)
            if isinstance(part, StreamedFaces)
            else Shuffled(len(part), seed + at)
            for at, part in enumerate(self.parts)
        ]
        return Mixed(orders, self.ratios, list(map(len, self.parts)), lanes, seed)

    def get(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return several faces, (N, 3, R, R) uint8."""
        index = torch.as_tensor(indices, dtype=torch.long)
        if self._cache is not None:
            return self._cache[index.to(self._cache.device)]
        return torch.stack([self[i] for i in index.tolist()])

    @property
    def cached(self) -> bool:
        """Say whether the decoded faces are kept."""
        return self._cache is not None

    def fingerprint(self) -> str:
        """Hash what names these faces, for the provenance of a checkpoint."""
        each = [
            part.fingerprint() if isinstance(part, StreamedFaces) else data_hash(part) for part in self.parts
        ]
        return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()

    def _decode_all(self, device: torch.device, progress: bool) -> Tensor:
        from tqdm import tqdm

        shape = (len(self), 3, self.resolution, self.resolution)
        _check_room(int(np.prod(shape)), device)
        faces = torch.empty(shape, dtype=torch.uint8, device=device)
        bar = tqdm(range(len(self)), desc="decode faces", unit="face", disable=not progress)
        with ThreadPoolExecutor(self.workers) as pool:
            for index, face in prefetch(pool, self.__getitem__, bar, 4 * self.workers):
                faces[index] = face
        return faces


def _check_room(size: int, device: torch.device) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return
    if size > 0.9 * free:
        raise ConfigError(
            f"caching the faces needs {size / 1e9:.1f} GB on {device}, which has {free / 1e9:.1f} GB: "
            'use cache = "none"'
        )


class Batches:
    """Endless batches from `start_step` on: the share of one process of every global batch.

    Batch k holds the samples k·G … (k+1)·G−1 with G = batch_size · world_size; process r takes those whose
    number leaves r when divided by world_size. So all processes together see what one process with
    batch_size G sees, and so does a resumed run.

    Args:
        dataset: the faces.
        batch_size: images per step and process.
        seed: of the order and of the sample seeds.
        device: where `hq` goes; default: where the cache is, else the CPU.
        prefetch: batches decoded ahead by threads when nothing is cached.
        variants: different sample seeds per face; 0 never repeats one.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        device: torch.device | str | None = None,
        prefetch: int = 2,
        variants: int = 0,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or start_step < 0:
            raise ConfigError(
                f"batches: got batch_size {batch_size}, rank {rank} of {world_size}, step {start_step}"
            )
        self.dataset, self.batch_size, self.seed, self.start_step = dataset, batch_size, seed, start_step
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.device = torch.device(device) if device is not None else None
        self.variants = variants
        self.index = dataset.order(batch_size * world_size, seed).index

    def counters(self, step: int) -> list[int]:
        """Number the samples of batch `step`, counted from the start of training."""
        first = step * self.batch_size * self.world_size + self.rank
        return [first + position * self.world_size for position in range(self.batch_size)]

    def __iter__(self) -> Iterator[CleanFaces]:
        steps = itertools.count(self.start_step)
        counters = (counter for step in steps for counter in self.counters(step))
        indices = ((counter, self.index(counter)) for counter in counters)
        if self.dataset.cached:
            for step in itertools.count(self.start_step):
                batch = list(itertools.islice(indices, self.batch_size))
                yield self._batch(step, self.dataset.get([index for _, index in batch]), batch)
        pool = ThreadPoolExecutor(self.dataset.workers)
        try:  # decoded by threads a few batches ahead
            ahead = (self.prefetch + 1) * self.batch_size
            faces = prefetch(pool, lambda drawn: self.dataset[drawn[1]], indices, ahead)
            for step in itertools.count(self.start_step):
                drawn, pictures = zip(*itertools.islice(faces, self.batch_size), strict=True)
                yield self._batch(step, torch.stack(pictures), drawn)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, step: int, hq: Tensor, drawn: Sequence[tuple[int, int]]) -> CleanFaces:
        """Put faces on the device; `drawn` has the sample number and the face's index of each."""
        if self.device is not None and hq.device != self.device:
            pinned = self.device.type == "cuda" and not hq.is_cuda  # "cuda:0" differs from "cuda"
            hq = (hq.pin_memory() if pinned else hq).to(self.device, non_blocking=True)
        seeds = torch.tensor([self._sample_seed(counter, index) for counter, index in drawn])
        return CleanFaces(hq.float().div_(255), seeds, torch.tensor([index for _, index in drawn]), step)

    def _sample_seed(self, counter: int, index: int) -> int:
        """The seed of augmentation and degradation of one sample."""
        own = mix(self.seed, counter, 0x5EED)
        return mix(self.seed, index, own % self.variants, 0x5EED) if self.variants else own
