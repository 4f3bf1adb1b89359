"""The input pipeline: an epoch of token rows as padded batches, read ahead with grain.

Which rows share a batch, and how wide it is, is worked out first (`robustjax.data.batching`), from
seed and epoch alone; grain then pads them, in a thread of its own, a few batches ahead. So every
process sees the same widths in the same order and takes its own rows of each batch, and an
iterator goes on at any batch without replaying those before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int

from robustjax.data.batching import FILLER, Batch, pad_rows

_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


@dataclass(frozen=True)
class Shard:
    """A process's part of every batch: the `index`-th of `count` equal runs of rows."""

    index: int = 0
    count: int = 1

    def rows_of(self, batch_size: int) -> slice:
        """The rows of a batch.

        Raises:
            ValueError: there is no such part, or the batch cannot be cut into equal ones.
        """
        if not 0 <= self.index < self.count:
            raise ValueError(f"shard {self.index} of {self.count} does not exist")
        if batch_size % self.count:
            raise ValueError(f"batch_size={batch_size} is not a multiple of {self.count} processes")
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


WHOLE = Shard()
"""Every row, for a process that has a batch to itself."""


class PaddedBatch(NamedTuple):
    """A batch of token rows.

    Attributes:
        indices: int32 [B], positions in the data set; `FILLER` marks rows that stand for nothing.
        ids: int32 [B, T], padded on the right to the batch's width.
        mask: bool [B, T], true at real tokens.
    """

    indices: Int[np.ndarray, " B"]
    ids: Int[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]


def padded_batches(
    rows: Sequence[Sequence[int]], pad_id: int, batches: Sequence[Batch], shard: Shard = WHOLE
) -> grain.MapDataset[PaddedBatch]:
    """The batches of an epoch, or of what is left of it, with random access.

    Args:
        rows: token ids of every text, unpadded.
        pad_id: the id to pad with.
        batches: which rows share a batch, in order (`length_bucketed_batches`).
        shard: the part of each batch that is wanted.

    Returns:
        One element a batch. `read_ahead` iterates over it.
    """

    def pad(batch: Batch) -> PaddedBatch:
        indices = batch.indices[shard.rows_of(len(batch.indices))]
        # A filler row is one pad token: it fits every bucket, and its weight is 0.
        chosen = [[pad_id] if i == FILLER else rows[i] for i in indices]
        return PaddedBatch(indices, *pad_rows(chosen, batch.width, pad_id))

    return grain.MapDataset.source(batches).map(pad)


def read_ahead(
    batches: grain.MapDataset[PaddedBatch], first: int = 0
) -> grain.DatasetIterator[PaddedBatch]:
    """Iterates from a batch on; the iterator's `get_state` and `set_state` mark places.

    Args:
        batches: what `padded_batches` gives.
        first: how many batches are passed over, without being padded.
    """
    return iter(batches[first:].to_iter_dataset(_READ_AHEAD))
