"""Batches of static shape: length buckets, right padding, and the order of an epoch.

A run compiles one program a bucket, so widths come from a short list of edges and every batch is
filled up to the same number of rows. Everything here is a pure function of its arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from robustjax.errors import UserError

FILLER = -1
"""Index of a row that stands for no example; give it weight 0."""

# Streams of the random generator, so that the two shuffles of one epoch are independent.
_ORDER_STREAM, _BATCH_STREAM = 0, 1


@dataclass(frozen=True)
class Batch:
    """Which examples share a batch.

    Attributes:
        width: the bucket's width in tokens, to which every row is padded.
        indices: int32 [B], positions in the data set; `FILLER` marks rows of weight 0.
    """

    width: int
    indices: Int[np.ndarray, " B"]


def check_edges(edges: tuple[int, ...]) -> None:
    """Raises UserError unless `edges` are strictly increasing positive widths."""
    if not edges or list(edges) != sorted(set(edges)) or edges[0] < 1:
        raise UserError(f"edges={edges}: expected strictly increasing positive bucket widths")


def bucket_for(length: int, edges: tuple[int, ...]) -> int:
    """Returns the smallest edge that is at least `length` tokens.

    Raises:
        ValueError: `edges` is not strictly increasing, or none is large enough.
    """
    if not edges or list(edges) != sorted(set(edges)) or edges[0] < 1:
        raise ValueError(f"edges={edges}: expected strictly increasing positive bucket widths")
    for edge in edges:
        if edge >= length:
            return edge
    raise ValueError(
        f"length={length} tokens does not fit the largest bucket {edges[-1]}: add a larger edge"
    )


def pad_rows(
    rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Pads token rows on the right.

    Args:
        rows: B rows of token ids, each at most `width` long.
        width: T, the common width.
        pad_id: the id to pad with.

    Returns:
        `(ids, mask)`: int32 [B, T] and bool [B, T], true at real tokens.

    Raises:
        ValueError: a row is longer than `width`; nothing is cut silently.
    """
    ids = np.full((len(rows), width), pad_id, dtype=np.int32)
    mask = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(f"row {i} has {len(row)} tokens, more than width={width}")
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return ids, mask


def group_by_bucket(
    lengths: Sequence[int] | Int[np.ndarray, " N"], edges: tuple[int, ...]
) -> dict[int, list[int]]:
    """Groups positions by the bucket of their length.

    Args:
        lengths: length in tokens of each example.
        edges: bucket widths, increasing.

    Returns:
        edge -> positions, both in increasing order; empty buckets are left out.
    """
    groups: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(bucket_for(length, edges), []).append(index)
    return dict(sorted(groups.items()))


def epoch_order(num: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    """Returns the permutation of `num` examples for one epoch, keyed by (seed, epoch)."""
    return np.random.default_rng((seed, epoch, _ORDER_STREAM)).permutation(num)


def length_bucketed_batches(
    lengths: Sequence[int] | Int[np.ndarray, " N"],
    edges: tuple[int, ...],
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[Batch]:
    """Cuts a shuffled epoch into batches of one bucket width each.

    Every example appears exactly once. The last batch of a bucket is filled with `FILLER`, so every
    batch has `batch_size` rows. Batches of all buckets are shuffled together. The result depends
    on the arguments only.

    Args:
        lengths: length in tokens of each example.
        edges: bucket widths, increasing.
        batch_size: rows of a batch.
        seed: seed of the run.
        epoch: number of the epoch.

    Raises:
        ValueError: `batch_size` is not positive, or an example fits no bucket.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    queues: dict[int, list[int]] = {}
    for index in epoch_order(len(lengths), seed, epoch):
        queues.setdefault(bucket_for(lengths[index], edges), []).append(int(index))
    batches = []
    for width, queue in sorted(queues.items()):
        for start in range(0, len(queue), batch_size):
            indices = np.full(batch_size, FILLER, dtype=np.int32)
            chosen = queue[start : start + batch_size]
            indices[: len(chosen)] = chosen
            batches.append(Batch(width, indices))
    order = np.random.default_rng((seed, epoch, _BATCH_STREAM)).permutation(len(batches))
    return [batches[i] for i in order]
