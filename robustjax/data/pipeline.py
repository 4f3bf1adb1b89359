"""The input pipeline: an epoch of token rows as padded batches, read ahead with grain.

Which rows share a batch, and how wide it is, is worked out first (`robustjax.data.batching`), from
seed and epoch alone; grain then pads them, in a thread of its own, a few batches ahead. So every
process sees the same widths in the same order and takes its own rows of each batch, and an
iterator goes on at any batch without replaying those before.
"""

from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int

from robustjax.data.batching import FILLER, Batch, pad_rows

_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


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
    rows: Sequence[Sequence[int]],
    pad_id: int,
    batches: Sequence[Batch],
    mine: Int[np.ndarray, " R"] | None = None,
) -> grain.MapDataset[PaddedBatch]:
    """The batches of an epoch, or of what is left of it, with random access.

    Args:
        rows: token ids of every text, unpadded.
        pad_id: the id to pad with.
        batches: which rows share a batch, in order (`length_bucketed_batches`).
        mine: places in each batch of the rows that are wanted, a process's own; None for all.

    Returns:
        One element a batch. `read_ahead` iterates over it.
    """

    def pad(batch: Batch) -> PaddedBatch:
        indices = batch.indices if mine is None else batch.indices[mine]
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
