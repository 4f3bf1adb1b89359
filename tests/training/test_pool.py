"""What a round trains on: how many of which, who is preferred, and always the same."""

import collections
import itertools

import numpy as np
import pytest

from robustjax.errors import UserError
from robustjax.training.pool import (
    PoolConfig,
    choose_to_attack,
    log_weights,
    round_rng,
    sample_round,
)


def _never_trained(count):
    return np.full(count, np.inf)


def _sample(config, num_clean, losses, seed=0, round_index=0):
    return sample_round(config, num_clean, losses, round_rng(seed, round_index))


def test_a_small_case_by_hand():
    sample = _sample(PoolConfig(max_examples=10, max_adversarial_share=0.4), 8, _never_trained(5))
    assert (len(sample.clean_indices), len(sample.adversarial_indices)) == (6, 4)
    assert sample.num_clean_missing == 0


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (200, (800, 200)),
        (400, (600, 400)),
        (600, (400, 600)),
        (800, (200, 800)),
        (1000, (200, 800)),
    ],
)
def test_the_rounds_of_the_paper(pool, expected):
    sample = _sample(PoolConfig(), 20_000, _never_trained(pool))
    assert (len(sample.clean_indices), len(sample.adversarial_indices)) == expected


def test_indices_are_in_range_and_none_twice():
    sample = _sample(PoolConfig(max_examples=30), 25, np.linspace(0, 1, 20))
    for indices, end in [(sample.clean_indices, 25), (sample.adversarial_indices, 20)]:
        assert len(set(indices.tolist())) == len(indices)
        assert indices.min() >= 0 and indices.max() < end
    assert sorted(sample.order.tolist()) == list(range(30))
    assert sample.order.tolist() != list(range(30))


def test_positions_map_back_to_their_sources():
    sample = _sample(PoolConfig(max_examples=10, max_adversarial_share=0.4), 8, _never_trained(5))
    items = [("clean", i) for i in sample.clean_indices]
    items += [("pool", i) for i in sample.adversarial_indices]
    kinds = ["pool" if flag else "clean" for flag in sample.is_adversarial]
    assert list(zip(kinds, sample.indices, strict=True)) == [items[place] for place in sample.order]


def test_an_empty_pool_and_a_set_without_clean_rows():
    sample = _sample(PoolConfig(max_examples=10), 8, _never_trained(0))
    assert sorted(sample.indices.tolist()) == list(range(8))
    assert not sample.is_adversarial.any()
    only_pool = _sample(PoolConfig(max_examples=10, max_adversarial_share=1.0), 0, np.zeros(4))
    assert sorted(only_pool.indices.tolist()) == list(range(4)) and only_pool.is_adversarial.all()


def test_too_few_clean_rows_are_all_taken_and_reported():
    sample = _sample(PoolConfig(max_examples=50, max_adversarial_share=0.4), 2, _never_trained(100))
    assert sorted(sample.clean_indices.tolist()) == [0, 1]
    assert len(sample.adversarial_indices) == 20
    assert sample.num_clean_missing == 28
    assert sorted(sample.order.tolist()) == list(range(22))


def test_a_round_is_keyed_by_seed_and_round_alone():
    def drawn(seed, round_index):
        sample = _sample(PoolConfig(max_examples=20), 100, np.arange(30.0), seed, round_index)
        return sample.indices.tolist()

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(2, 2) and drawn(1, 2) != drawn(1, 3) and drawn(1, 2) != drawn(2, 1)
    first, second = (round_rng(0, 0, purpose).random() for purpose in ("pool", "attack"))
    assert first != second


def test_loss_ranks_are_true_ranks():
    # argsort of these losses is [1, 2, 0]; the ranks are [2, 0, 1].
    config = PoolConfig(loss_rank_weight=1.0, decay=1.0)
    assert log_weights(config, np.asarray([9.0, 1.0, 5.0])).tolist() == [2, 0, 1]


def test_both_ranks_are_mixed():
    config = PoolConfig(loss_rank_weight=0.25, decay=0.1)
    # 0.1 x (0.75 x [0, 1, 2] + 0.25 x [2, 0, 1])
    np.testing.assert_allclose(
        log_weights(config, np.asarray([9.0, 1.0, 5.0])), [0.05, 0.075, 0.175]
    )


def test_equal_losses_are_ranked_by_age():
    config = PoolConfig(loss_rank_weight=1.0, decay=1.0)
    losses = np.asarray([np.inf, 3.0, 3.0] * 30)
    ranks = log_weights(config, losses).reshape(30, 3)
    assert sorted(ranks.ravel().tolist()) == list(range(90))
    assert (np.diff(ranks, axis=0) > 0).all() and (ranks[:, 1] < ranks[:, 2]).all()
    assert ranks[:, 0].min() > ranks[:, 1:].max()


def test_draws_follow_the_weights_without_replacement():
    # Probability of each ordered pair: w_i / W * w_j / (W - w_i).
    config = PoolConfig(max_examples=3, max_adversarial_share=0.67, loss_rank_weight=0.0, decay=1.0)
    weights = np.exp(np.arange(3.0))
    rng = np.random.default_rng(0)
    draws = 4000
    counts = collections.Counter(
        tuple(sample_round(config, 10, _never_trained(3), rng).adversarial_indices.tolist())
        for _ in range(draws)
    )
    for first, second in itertools.permutations(range(3), 2):
        rest = weights.sum() - weights[first]
        expected = weights[first] / weights.sum() * weights[second] / rest
        spread = 5 * np.sqrt(expected * (1 - expected) / draws)
        assert abs(counts[first, second] / draws - expected) < spread, (first, second)


def test_a_steep_preference_takes_the_newest_and_does_not_run_out():
    config = PoolConfig(
        max_examples=100, max_adversarial_share=0.5, loss_rank_weight=0.0, decay=1e3
    )
    sample = _sample(config, 100, _never_trained(2000))
    assert sample.adversarial_indices.tolist() == list(range(1999, 1949, -1))


def test_who_is_attacked():
    chosen = choose_to_attack(50, 20, round_rng(0, 1, "attack"))
    assert len(set(chosen.tolist())) == 20 and set(chosen.tolist()) <= set(range(50))
    assert sorted(choose_to_attack(5, 5, round_rng(0, 1)).tolist()) == list(range(5))
    for count in (0, 6):
        with pytest.raises(UserError, match=f"num_examples_per_round: {count} of 5"):
            choose_to_attack(5, count, round_rng(0, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_examples": 0}, "pool.max_examples: 0"),
        ({"max_adversarial_share": 1.5}, "pool.max_adversarial_share: 1.5"),
        ({"loss_rank_weight": -0.1}, "pool.loss_rank_weight: -0.1"),
        ({"decay": float("inf")}, "pool.decay: inf"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(UserError, match=message):
        PoolConfig(**fields)


def test_bad_losses():
    with pytest.raises(ValueError, match="loss of example 1 is NaN"):
        _sample(PoolConfig(), 5, np.asarray([0.0, np.nan]))
    with pytest.raises(ValueError, match="nothing to train on"):
        _sample(PoolConfig(), 0, np.zeros(0))
