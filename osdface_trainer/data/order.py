"""The order in which training sees faces: pure functions of (seed, number of the sample).

Batch k is the same after a resume and split over any number of processes.
"""

from collections.abc import Sequence

import numpy as np

from ..seeds import mix, spread
from .shards import StreamedFaces


def epoch_order(size: int, epoch: int, seed: int) -> np.ndarray:
    """Shuffle `size` indices: a function of its arguments alone, on every machine and version."""
    return np.argsort(spread(mix(seed, epoch, 0x0DE), size), kind="stable")


class Shuffled:
    """All faces of a source in an order of its own each epoch; epochs follow each other without a gap."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epochs: dict[int, np.ndarray] = {}
        """Two at most: places of the batch may come to an epoch's end in different steps."""

    def index(self, number: int) -> int:
        """Return the face that sample `number` of this source shows."""
        epoch, position = divmod(number, self.size)
        if epoch not in self._epochs:
            order = epoch_order(self.size, epoch, self.seed).astype(np.uint32)
            self._epochs = {e: kept for e, kept in self._epochs.items() if e == epoch - 1} | {epoch: order}
        return int(self._epochs[epoch][position])


class Streams:
    """Shards in several streams side by side, so that a process needs those of its streams only.

    Stream t of T has an equal share of the faces, whole shards but for its ends, and gives the samples whose
    number leaves t when divided by T. T divides the global batch, and there are at least as many shards; with
    as many as a global batch has samples, no two processes share a stream. A pass takes a stream's shards in
    an order of its own, the faces of a shard shuffled, while the next shard is fetched.

    Args:
        lanes: samples in a global batch.
    """

    def __init__(self, faces: StreamedFaces, lanes: int, seed: int) -> None:
        self.faces, self.seed = faces, seed
        self.count = max(n for n in range(1, lanes + 1) if lanes % n == 0 and n <= len(faces.ends))
        self._passes: dict[int, tuple[int, list[tuple[int, int]], np.ndarray]] = {}
        self._pieces: dict[int, int] = {}

    def index(self, number: int) -> int:
        """Return the face that sample `number` of this source shows; fetch the shard after its own, too."""
        number, stream = divmod(number, self.count)
        first, end = (at * len(self.faces) // self.count for at in (stream, stream + 1))
        turn, position = divmod(number, end - first)
        if self._passes.get(stream, (-1,))[0] != turn:
            self._passes[stream] = (turn, *self._pass(stream, turn, first, end))
        _, pieces, order = self._passes[stream]
        self._follow(stream, pieces, position)
        return int(order[position])

    def _pass(self, stream: int, turn: int, first: int, end: int) -> tuple[list[tuple[int, int]], np.ndarray]:
        """One pass: the shards with the place at which each ends, and all faces, (end - first,)."""
        ends = self.faces.ends
        shards = np.arange(np.searchsorted(ends, first, "right"), np.searchsorted(ends, end - 1, "right") + 1)
        pieces, order = [], []
        for shard in shards[epoch_order(len(shards), turn, mix(self.seed, stream))].tolist():
            low = max(first, int(ends[shard - 1]) if shard else 0)
            size = min(end, int(ends[shard])) - low
            order.append(low + epoch_order(size, turn, mix(self.seed, stream, shard)))
            pieces.append((shard, size + (pieces[-1][1] if pieces else 0)))
        return pieces, np.concatenate(order)

    def _follow(self, stream: int, pieces: list[tuple[int, int]], position: int) -> None:
        """Fetch ahead and let go of what lies behind when a stream comes to another shard."""
        at = next(i for i, (_, end) in enumerate(pieces) if position < end)
        if self._pieces.get(stream) == (now := pieces[at][0]):
            return
        if stream in self._pieces:
            self.faces.leave(self._pieces[stream])
        self._pieces[stream] = now
        for shard, _ in pieces[at : at + 2]:
            self.faces.fetch(shard)


class Mixed:
    """Samples of several sources, so many of each in every sum(ratios) samples of a place in the batch.

    Args:
        ratios: whole numbers, one a source.
        sizes: faces of each source, which are numbered one source after the other.
        lanes: samples in a global batch. A place in it draws for itself, so that what a process needs of a
            stream does not depend on the other places.
    """

    def __init__(
        self,
        orders: Sequence[Shuffled | Streams],
        ratios: Sequence[int],
        sizes: Sequence[int],
        lanes: int,
        seed: int,
    ) -> None:
        self.orders, self.ratios, self.lanes, self.seed = orders, ratios, lanes, seed
        self.starts = [sum(sizes[:number]) for number in range(len(sizes))]
        self._deck = np.repeat(np.arange(len(ratios)), ratios)

    def index(self, counter: int) -> int:
        """Return the face that sample `counter` of the training shows."""
        step, lane = divmod(counter, self.lanes)
        block, place = divmod(step, len(self._deck))
        dealt = self._deck[epoch_order(len(self._deck), block, mix(self.seed, lane))]
        source = int(dealt[place])
        drawn = block * self.ratios[source] + int((dealt[:place] == source).sum())
        return self.starts[source] + self.orders[source].index(drawn * self.lanes + lane)
