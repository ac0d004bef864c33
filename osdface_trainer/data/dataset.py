"""Aligned faces as uint8 tensors, and the order in which training sees them.

The order is a pure function of (seed, sample counter): batch k is the same after a resume, for any number of
worker threads, and split over any number of processes.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from osdface_core.errors import ConfigError

from ..seeds import mix, spread
from .prefetch import prefetch
from .sources import FaceFile, data_hash, decode, list_faces, weigh_small

Cache = Literal["none", "cpu", "ram", "device"]


class Faces(NamedTuple):
    """One batch of one process. `hq`: (B, 3, R, R); `seeds`, `indices`: (B,) int64 (CPU); `step`: number."""

    hq: Tensor
    seeds: Tensor
    indices: Tensor
    step: int


class FaceDataset:
    """Aligned faces of one resolution.

    Args:
        source: what `list_faces` takes, or the items themselves.
        resolution: side [px]; other sizes are resized with antialiasing.
        cache: "none" decodes on demand; "cpu" (or "ram") and "device" decode everything once and keep it as
            one uint8 tensor there (0.79 MB per 512² face), so that a step never waits for the disk.
        device: for cache="device".
        split: rows of a manifest to keep ("train", "val").
        min_size, small_weight: faces smaller than `min_size` px by origin get this weight; 0 leaves them out.
        limit: keep only the first so many; 0 = all.
        workers: decoding threads; 0 = one per core, at most 16.
        verify: check the sha256 of a manifest while decoding.
        progress: show a bar while the cache is filled.
    """

    def __init__(
        self,
        source: str | Path | Sequence[FaceFile],
        resolution: int = 512,
        *,
        cache: Cache = "none",
        device: torch.device | str = "cpu",
        split: str | None = None,
        min_size: int = 0,
        small_weight: float = 0.0,
        limit: int = 0,
        workers: int = 0,
        verify: bool = False,
        progress: bool = False,
        cache_dir: str | Path | None = None,
    ) -> None:
        if isinstance(source, str | Path):
            items = list_faces(source, split=split, cache_dir=cache_dir)
        else:
            items = list(source)
        if min_size > 0:
            items = weigh_small(items, min_size, small_weight)
        self.items = items[:limit] if limit else items
        if not self.items:
            raise ConfigError("the data set is empty")
        self.resolution, self.verify = resolution, verify
        self.workers = workers or min(16, os.cpu_count() or 1)
        self.weights = np.array([item.weight for item in self.items])
        self._cache: Tensor | None = None
        if cache != "none":
            self._cache = self._decode_all(torch.device(device if cache == "device" else "cpu"), progress)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        """Return a face, (3, R, R) uint8, on the device of the cache or the CPU. Raises ImageError."""
        if self._cache is not None:
            return self._cache[index]
        pixels = decode(self.items[index], self.resolution, self.verify)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

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
        return data_hash(self.items)

    def order(self, epoch: int, seed: int, world_size: int = 1, rank: int = 0) -> np.ndarray:
        """List the indices that this process sees in an epoch, in order. See `epoch_order`."""
        whole = epoch_order(len(self), epoch, seed, self.weights)
        return whole[(np.arange(len(self)) + epoch * len(self)) % world_size == rank]

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


def epoch_order(size: int, epoch: int, seed: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Shuffle `size` indices: a function of its arguments alone, on every machine and version.

    Without weights every index occurs once. With weights an index occurs size·wᵢ/Σw times on average over the
    epochs (systematic sampling: the count in one epoch is that number rounded down or up).
    """
    index = np.arange(size)
    if weights is not None and not np.all(weights == weights[0]):
        offset = mix(seed, epoch, 0x5E7) / 2**63
        ticks = (index + offset) / size * weights.sum()
        index = np.minimum(np.searchsorted(np.cumsum(weights), ticks, side="right"), size - 1)
    return index[np.argsort(spread(mix(seed, epoch, 0x0DE), size), kind="stable")]


class Batches:
    """Endless batches from `start_step` on: the share of one process of every global batch.

    Batch k holds the samples k·G … (k+1)·G−1 with G = batch_size · world_size; process r takes those whose
    number leaves r when divided by world_size. So all processes together see what one process with
    batch_size G sees, and so does a resumed run. Epochs follow each other without a gap.

    Args:
        dataset: the faces.
        batch_size: images per step and process.
        seed: of the order and of the sample seeds.
        device: where `hq` goes; default: where the cache is, else the CPU.
        unit: float32 in [0, 1]; False keeps uint8.
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
        unit: bool = True,
        prefetch: int = 2,
        variants: int = 0,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or start_step < 0:
            raise ConfigError(
                f"batches: got batch_size {batch_size}, rank {rank} of {world_size}, step {start_step}"
            )
        self.dataset, self.batch_size, self.seed, self.start_step = dataset, batch_size, seed, start_step
        self.rank, self.world_size, self.prefetch, self.unit = rank, world_size, prefetch, unit
        self.device = torch.device(device) if device is not None else None
        self.variants = variants
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def counters(self, step: int) -> list[int]:
        """Number the samples of batch `step`, counted from the start of training."""
        first = step * self.batch_size * self.world_size + self.rank
        return [first + position * self.world_size for position in range(self.batch_size)]

    def index(self, counter: int) -> int:
        """Return the face that sample number `counter` shows."""
        epoch, position = divmod(counter, len(self.dataset))
        if epoch != self._epoch[0]:
            self._epoch = (epoch, self.dataset.order(epoch, self.seed))
        return int(self._epoch[1][position])

    def __iter__(self) -> Iterator[Faces]:
        if self.dataset.cached:
            step = self.start_step
            while True:
                counters = self.counters(step)
                indices = [self.index(counter) for counter in counters]
                yield self._batch(step, self.dataset.get(indices), counters, indices)
                step += 1
        yield from self._decoded()

    def _decoded(self) -> Iterator[Faces]:
        """Yield the same batches, decoded by threads a few batches ahead."""
        waiting: deque[tuple[int, list[int], list[int], list[Future]]] = deque()
        pool = ThreadPoolExecutor(self.dataset.workers)
        step = self.start_step
        try:
            while True:
                while len(waiting) <= self.prefetch:
                    counters = self.counters(step)
                    indices = [self.index(counter) for counter in counters]
                    faces = [pool.submit(self.dataset.__getitem__, index) for index in indices]
                    waiting.append((step, counters, indices, faces))
                    step += 1
                number, counters, indices, faces = waiting.popleft()
                yield self._batch(number, torch.stack([face.result() for face in faces]), counters, indices)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, step: int, hq: Tensor, counters: list[int], indices: list[int]) -> Faces:
        if self.device is not None and hq.device != self.device:
            pinned = self.device.type == "cuda" and not hq.is_cuda  # "cuda:0" differs from "cuda"
            hq = (hq.pin_memory() if pinned else hq).to(self.device, non_blocking=True)
        if self.unit:
            hq = hq.float().div_(255)
        seeds = torch.tensor(list(map(self._sample_seed, counters, indices)))
        return Faces(hq, seeds, torch.tensor(indices), step)

    def _sample_seed(self, counter: int, index: int) -> int:
        """The seed of augmentation and degradation of one sample."""
        own = mix(self.seed, counter, 0x5EED)
        return mix(self.seed, index, own % self.variants, 0x5EED) if self.variants else own
