"""The cheapest plan that fits, among plans whose memory and time are made up."""

import dataclasses

import pytest

from robustjax.attacks.gcg import GCG
from robustjax.errors import UserError
from robustjax.models.registry import scaling_point
from robustjax.planning import suggest as module
from robustjax.planning.ahead_of_time import HBM_SHARE, TooLargeError
from robustjax.planning.chips import parse_slice
from robustjax.planning.suggest import meshes, suggest
from tests.planning.made_up import plan_of

SLICE = parse_slice("v5e:2x2")
ROOM = int(HBM_SHARE * SLICE.generation.hbm_bytes)
SHAPE = scaling_point("pythia-12b").config
ATTACK = GCG(num_candidates=16, candidate_chunk=4)


def found(peak, seconds, most_rows=16, least=lambda trial: 0, attack=ATTACK):
    """A suggestion where a trial takes ``peak(trial)`` bytes and ``seconds(trial)``."""
    tried = []

    def compile_trial(trial):
        tried.append(trial)
        if peak(trial) > SLICE.generation.hbm_bytes:
            raise TooLargeError("too large")
        return plan_of(SLICE, peak(trial), seconds(trial))

    return suggest(attack, SHAPE, SLICE, most_rows, least, compile_trial), tried


def test_weights_are_split_over_whole_heads_only():
    assert [mesh.tensor for mesh in meshes(SHAPE, parse_slice("v5e:8x8"))] == [1, 2, 4, 8]
    qwen = scaling_point("qwen2.5-1.5b").config  # two heads of keys and values
    assert [mesh.sizes for mesh in meshes(qwen, SLICE)] == [(4, 1, 1), (2, 1, 2)]


def test_the_cheapest_mesh_wins():
    best, tried = found(lambda trial: 1, lambda trial: 1.0 if trial.mesh.tensor == 2 else 2.0)
    assert best.trial.mesh.sizes == (2, 1, 2)
    assert (best.compiled, best.left_out) == (len(tried), 0) == (3, 0)
    assert best.chip_seconds == 1.0 * SLICE.chips / 16


def test_no_more_examples_than_there_are():
    best, _ = found(lambda trial: 1, lambda trial: 1.0, most_rows=9)
    assert best.trial.batch_size == 8


def test_a_smaller_pass_comes_before_a_smaller_batch():
    def peak(trial):
        return trial.batch_size * trial.attack.candidate_chunk * ROOM // 16

    best, _ = found(peak, lambda trial: 1.0)
    assert (best.trial.batch_size, best.trial.attack.candidate_chunk) == (16, 1)
    assert dataclasses.replace(best.trial.attack, candidate_chunk=4) == ATTACK


def test_a_pass_that_is_left_open_begins_with_all_candidates():
    attack = dataclasses.replace(ATTACK, candidate_chunk=0)
    best, _ = found(lambda trial: 1, lambda trial: 1.0, attack=attack)
    assert best.trial.attack == dataclasses.replace(ATTACK, candidate_chunk=16)


def test_fewer_examples_where_no_pass_is_small_enough():
    best, _ = found(lambda trial: trial.batch_size * ROOM // 4, lambda trial: 1.0)
    assert (best.trial.batch_size, best.trial.attack.candidate_chunk) == (4, 1)


def test_what_cannot_fit_is_not_compiled():
    best, tried = found(
        lambda trial: 1,
        lambda trial: 1.0,
        least=lambda trial: ROOM + 1 if trial.mesh.tensor < 4 else 0,
    )
    assert {trial.mesh.tensor for trial in tried} == {4} == {best.trial.mesh.tensor}
    assert best.left_out == 3 + 4  # batches of 16, 8, 4 on four shards; down to 2 on two


def test_a_plan_that_leaves_too_little_free_does_not_fit():
    with pytest.raises(UserError, match=r"nothing fits v5e:2x2: 0 plans .* 18 when they were"):
        found(lambda trial: ROOM + 1, lambda trial: 1.0)
    assert module.HBM_SHARE < 1
