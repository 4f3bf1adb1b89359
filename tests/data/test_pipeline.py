"""The input pipeline: what is in a batch, whose rows it is, and going on in the middle."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robustjax.data.batching import FILLER, length_bucketed_batches, pad_rows
from robustjax.data.pipeline import padded_batches, read_ahead

ROOT = Path(__file__).parents[2]
EDGES, BATCH, PAD = (8, 16, 32), 8, 99
LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 33, size=77)]
ROWS = [[number] * length for number, length in enumerate(LENGTHS)]


def plan(epoch=0, seed=3):
    return length_bucketed_batches(LENGTHS, EDGES, BATCH, seed, epoch)


def elements(iterator):
    return [tuple(x.tolist() for x in batch) for batch in iterator]


def epoch_of(count, index=0, first=0, epoch=0):
    mine = np.arange(BATCH).reshape(count, -1)[index]
    return read_ahead(padded_batches(ROWS, PAD, plan(epoch), mine), first)


def test_a_batch_is_padded_to_its_bucket_and_no_further():
    batches = plan()
    assert {batch.width for batch in batches} == set(EDGES)
    for batch, padded in zip(batches, epoch_of(1), strict=True):
        rows = [[PAD] if i == FILLER else ROWS[i] for i in batch.indices]
        ids, mask = pad_rows(rows, batch.width, PAD)
        np.testing.assert_array_equal(padded.indices, batch.indices)
        np.testing.assert_array_equal(padded.ids, ids)
        np.testing.assert_array_equal(padded.mask, mask)
    assert any(FILLER in batch.indices for batch in batches), "no filler was tested"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_every_batch_and_agree_on_its_width(count):
    whole = list(epoch_of(1))
    parts = [list(epoch_of(count, index)) for index in range(count)]
    for batch, *mine in zip(whole, *parts, strict=True):
        assert {one.ids.shape for one in mine} == {(BATCH // count, batch.ids.shape[1])}
        for name in batch._fields:
            joined = np.concatenate([getattr(one, name) for one in mine])
            np.testing.assert_array_equal(joined, getattr(batch, name))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_interrupted_iteration_goes_on_at_the_element(count):
    number = len(plan())
    for index in range(count):
        whole = elements(epoch_of(count, index))
        assert len(whole) == number and whole != sorted(whole)
        for done in (0, 1, number // 2, number - 1, number):
            before = epoch_of(count, index)
            for _ in range(done):
                next(before)
            state = before.get_state()
            after = epoch_of(count, index)  # in another process, say
            after.set_state(state)
            assert elements(after) == whole[done:]
            assert elements(before) == whole[done:]
            # The number of elements says it all as well.
            assert elements(epoch_of(count, index, first=done)) == whole[done:]


def test_only_what_is_iterated_over_is_padded():
    touched = []

    class Rows(list):
        def __getitem__(self, index):
            touched.append(int(index))
            return super().__getitem__(index)

    batches = plan()
    list(read_ahead(padded_batches(Rows(ROWS), PAD, batches), first=len(batches) - 1))
    assert sorted(touched) == sorted(i for i in batches[-1].indices if i != FILLER)


def test_epochs_and_seeds_differ_and_are_replayed():
    first = elements(epoch_of(1))
    assert elements(epoch_of(1)) == first != elements(epoch_of(1, epoch=1))
    other = read_ahead(padded_batches(ROWS, PAD, plan(seed=4)))
    assert elements(other) != first


def test_rows_need_not_stand_side_by_side():
    """A process has some rows of each of a batch's microbatches."""
    mine = np.array([0, 1, 4, 5])
    whole, some = epoch_of(1), read_ahead(padded_batches(ROWS, PAD, plan(), mine))
    for batch, part in zip(whole, some, strict=True):
        for name in batch._fields:
            np.testing.assert_array_equal(getattr(part, name), getattr(batch, name)[mine])


PROCESS = """
import json, sys
from tests.data.test_pipeline import elements, epoch_of

index, count, done, state = json.loads(sys.argv[1])
left = epoch_of(count, index)
if state is not None:
    left.set_state(state)
for _ in range(done):
    next(left)
state = left.get_state()
print(json.dumps({"state": state, "left": elements(left)}))
"""


def run_processes(count, done, states):
    """What each of so many processes has left after some elements, and where it then stood."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps([index, count, done, states[index]])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    found = [json.loads(one.communicate()[0]) for one in started]
    assert [one.returncode for one in started] == [0] * count
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_that_were_killed_go_on_in_others(count):
    first = run_processes(count, 5, [None] * count)
    again = run_processes(count, 0, [one["state"] for one in first])
    for index, (before, after) in enumerate(zip(first, again, strict=True)):
        whole = json.loads(json.dumps(elements(epoch_of(count, index))))
        assert after["left"] == before["left"] == whole[5:]
