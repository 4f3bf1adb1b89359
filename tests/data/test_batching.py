import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax.data.batching import (
    FILLER,
    bucket_for,
    epoch_order,
    group_by_bucket,
    length_bucketed_batches,
    pad_rows,
)

EDGES = (8, 16, 32)
LENGTHS = st.lists(st.integers(0, 32), max_size=40)


@pytest.mark.parametrize(("length", "edge"), [(0, 8), (8, 8), (9, 16), (32, 32)])
def test_the_smallest_bucket_that_fits(length, edge):
    assert bucket_for(length, EDGES) == edge


def test_no_bucket_fits():
    with pytest.raises(ValueError, match="length=33 .* largest bucket 32"):
        bucket_for(33, EDGES)


@pytest.mark.parametrize("edges", [(), (16, 8), (8, 8), (0, 8)])
def test_bad_edges_are_refused(edges):
    with pytest.raises(ValueError, match="edges="):
        bucket_for(4, edges)


def test_rows_are_padded_on_the_right():
    ids, mask = pad_rows([[5, 0, 6], []], width=4, pad_id=9)

    np.testing.assert_array_equal(ids, [[5, 0, 6, 9], [9, 9, 9, 9]])
    np.testing.assert_array_equal(mask, [[True, True, True, False], [False] * 4])
    assert ids.dtype == np.int32 and mask.dtype == bool


def test_a_row_is_never_cut():
    with pytest.raises(ValueError, match="row 1 has 3 tokens, more than width=2"):
        pad_rows([[1], [1, 2, 3]], width=2, pad_id=0)


def test_groups_keep_the_order():
    assert group_by_bucket([30, 3, 9, 8, 32], EDGES) == {8: [1, 3], 16: [2], 32: [0, 4]}


def test_an_epoch_is_a_permutation_keyed_by_seed_and_epoch():
    order = epoch_order(50, seed=1, epoch=2)

    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, epoch_order(50, seed=1, epoch=2))
    others = [epoch_order(50, 1, 3), epoch_order(50, 2, 2), epoch_order(50, 2, 1)]
    assert all((order != other).any() for other in others)


@settings(max_examples=25)
@given(lengths=LENGTHS, batch_size=st.integers(1, 7), seed=st.integers(0, 3))
def test_every_example_appears_once_in_a_batch_of_its_width(lengths, batch_size, seed):
    batches = length_bucketed_batches(lengths, EDGES, batch_size, seed, epoch=0)

    seen = np.concatenate([b.indices for b in batches]) if batches else np.array([], int)
    assert sorted(seen[seen != FILLER]) == list(range(len(lengths)))
    for batch in batches:
        assert batch.indices.shape == (batch_size,)
        assert all(bucket_for(lengths[i], EDGES) == batch.width for i in batch.indices if i >= 0)
    # Only the last batch of a bucket may have fillers.
    partial = [b.width for b in batches if FILLER in b.indices]
    assert len(partial) == len(set(partial))


def test_batches_are_shuffled_within_and_across_buckets_and_reproducible():
    lengths = [4] * 32 + [12] * 32
    first = length_bucketed_batches(lengths, EDGES, 4, seed=0, epoch=0)
    again = length_bucketed_batches(lengths, EDGES, 4, seed=0, epoch=0)
    later = length_bucketed_batches(lengths, EDGES, 4, seed=0, epoch=1)

    def rows(batches):
        return [batch.indices.tolist() for batch in batches]

    assert rows(first) == rows(again)
    assert rows(first) != rows(later)
    assert {tuple(r) for r in rows(first)} != {tuple(r) for r in rows(later)}
    widths = [batch.width for batch in first]
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)


def test_an_empty_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch_size=0"):
        length_bucketed_batches([1], EDGES, 0, seed=0, epoch=0)
