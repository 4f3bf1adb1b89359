"""Metrics: worked examples, limits and invariances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax.evaluation import metrics

# Iteration histories of two examples: [ok, fail, fail] and [ok, ok, fail].
TWO_HISTORIES = np.array([[False, True, True], [False, False, True]])


def test_wilson_interval_matches_hand_computed_values():
    # 8 of 10: centre (0.8 + z2/20) / (1 + z2/10), half-width from the same formula, by hand.
    assert metrics.wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert metrics.wilson_interval(0, 20)[1] == pytest.approx(0.161125, abs=1e-6)


def test_wilson_interval_is_exact_at_the_ends_and_nan_without_trials():
    for n in (1, 7, 64, 500):
        assert metrics.wilson_interval(0, n)[0] == 0.0
        assert metrics.wilson_interval(n, n)[1] == 1.0
    assert all(math.isnan(bound) for bound in metrics.wilson_interval(0, 0))


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_contains_the_rate_and_mirrors(case):
    successes, n = case
    low, high = metrics.wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = metrics.wilson_interval(n - successes, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_interval_rejects_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=f"successes={successes}"):
        metrics.wilson_interval(successes, n)


def test_smoothing_bounds_of_the_published_sample_sizes():
    assert metrics.smoothed(0, 500) == pytest.approx(1 / 502)
    assert metrics.smoothed(0, 200) == pytest.approx(1 / 202)
    assert metrics.smoothed(1, 200) == pytest.approx(201 / 202)
    assert metrics.smoothed(0.5, 64) == 0.5
    assert metrics.smoothed(0.3, 10, pseudocount=0) == pytest.approx(0.3)
    assert math.isnan(metrics.smoothed(math.nan, 3))
    with pytest.raises(ValueError, match=r"p=1\.2"):
        metrics.smoothed(1.2, 3)


def test_logit10():
    odds = metrics.logit10([0.0, 0.5, 10 / 11, 1.0, math.nan])
    np.testing.assert_allclose(odds, [-math.inf, 0, 1, math.inf, math.nan], atol=1e-12)
    with pytest.raises(ValueError, match="proportions"):
        metrics.logit10([-0.1])


def test_success_curves_of_the_worked_example():
    np.testing.assert_array_equal(metrics.asr_curve(TWO_HISTORIES), [0, 0, 0.5, 1])
    dip = [[True, False, False], [False, False, True]]
    np.testing.assert_array_equal(metrics.asr_curve(dip), [0, 0.5, 0, 0.5])
    np.testing.assert_array_equal(metrics.first_success_curve(dip), [0, 0.5, 0.5, 1])


def test_success_curves_without_examples_or_iterations():
    np.testing.assert_array_equal(
        metrics.asr_curve(np.zeros((0, 2), bool)), [0, math.nan, math.nan]
    )
    np.testing.assert_array_equal(metrics.first_success_curve(np.zeros((3, 0), bool)), [0])
    with pytest.raises(ValueError, match="examples, iterations"):
        metrics.asr_curve([True, False])


@given(
    st.integers(1, 6).flatmap(
        lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=8)
    )
)
def test_cumulative_curve_never_falls_and_bounds_the_instantaneous_one(success):
    instantaneous = metrics.asr_curve(success)
    cumulative = metrics.first_success_curve(success)
    assert np.all(np.diff(cumulative) >= 0)
    assert np.all(cumulative >= instantaneous)
    assert cumulative[-1] == np.mean([any(row) for row in success])
    np.testing.assert_array_equal(metrics.asr_curve(success[::-1]), instantaneous)


def test_iterations_for_success():
    curve = metrics.asr_curve(TWO_HISTORIES)
    assert metrics.iterations_for_success(curve) == [0, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    one_never_breaks = metrics.asr_curve([[False, True, True], [False, False, False]])
    assert metrics.iterations_for_success(one_never_breaks) == [0] + [2] * 5 + [None] * 5


def test_iterations_for_success_counts_an_exact_fraction_as_reached():
    for decile in range(1, 11):
        success = np.zeros((30, 1), bool)
        success[: 3 * decile] = True
        reached = metrics.iterations_for_success(metrics.asr_curve(success))
        assert reached == [0] + [1] * decile + [None] * (10 - decile)


def test_average_initial_breach():
    assert metrics.average_initial_breach([1, 2, 3, 4, 5], 0.6) == 2
    assert metrics.average_initial_breach([1, 2, 3, 4, 5], 0) == 1
    assert metrics.average_initial_breach([1, 2, 3, 4, 5], 1) == 3
    assert metrics.average_initial_breach([5, 4, 3, 2, 1], 0.4) == 1.5
    assert metrics.average_initial_breach([2, 3, 3, 3], 0.6) == 2.5
    assert metrics.average_initial_breach([2, 3, 3, 3], 0.8) == pytest.approx(8 / 3)
    assert metrics.average_initial_breach([1, None], 0.5) == 1
    assert metrics.average_initial_breach([1, None], 1) == math.inf
    assert metrics.average_initial_breach(range(1, 101), 0.29) == 15  # 100 * 0.29 < 29 as a float
    assert math.isnan(metrics.average_initial_breach([], 0.5))
    with pytest.raises(ValueError, match=r"proportion=1\.1"):
        metrics.average_initial_breach([1], 1.1)


def test_first_crossing():
    curve = [0, 0.1, 0.5, 0.3, 0.9]
    assert metrics.first_crossing(curve, 0) == 0
    assert metrics.first_crossing(curve, 0.1) == 1
    assert metrics.first_crossing(curve, 0.3) == pytest.approx(1.5)  # before the dip, not at 3
    assert metrics.first_crossing(curve, 0.7) == pytest.approx(3 + 0.4 / 0.6)
    assert metrics.first_crossing(curve, 0.95) is None
    assert metrics.first_crossing([0, math.nan], 0.5) is None


def test_first_crossing_uses_the_grid_not_the_list_position():
    assert metrics.first_crossing([0.4, 0.8], 0.2, iterations=[12, 24]) == pytest.approx(6)
    assert metrics.first_crossing([0.4, 0.8], 0.6, iterations=[12, 24]) == pytest.approx(18)
    dense = metrics.first_crossing([0, 0.1, 0.5], 0.3)
    assert metrics.first_crossing([0, 0.1, 0.5], 0.3, iterations=[0, 1, 2]) == dense


@pytest.mark.parametrize(
    ("curve", "target", "iterations", "message"),
    [
        ([0, 1], 1.5, None, "target"),
        ([0, 1], 0.5, [0], "iterations"),
        ([0, 1], 0.5, [1, 1], "iterations"),
        ([0.2, 1], 0.5, None, "iteration 0"),
    ],
)
def test_first_crossing_rejects(curve, target, iterations, message):
    with pytest.raises(ValueError, match=message):
        metrics.first_crossing(curve, target, iterations)


def test_log_prob_metrics_two_classes_by_hand():
    # Probabilities of the true label 0.8 and 0.5.
    logits = np.log([[0.2, 0.8], [0.5, 0.5]])
    result = metrics.log_prob_metrics(logits, [1, 0])
    assert result["mean_log_prob"] == pytest.approx((math.log(0.8) + math.log(0.5)) / 2)
    assert result["log_mean_prob"] == pytest.approx(math.log(0.65))
    assert result["mean_logit"] == pytest.approx(math.log(4) / 2)


def test_log_prob_metrics_of_three_classes_use_all_the_others():
    result = metrics.log_prob_metrics(np.log([[0.5, 0.2, 0.3]]), [1])
    assert result["mean_logit"] == pytest.approx(math.log(0.2 / 0.8))


def test_log_prob_metrics_keep_leading_axes_and_ignore_a_common_shift():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 5, 3)), rng.integers(0, 3, 5)
    whole = metrics.log_prob_metrics(logits, labels)
    shifted = metrics.log_prob_metrics(logits + 1000, labels)
    for name, values in whole.items():
        assert values.shape == (4,)
        np.testing.assert_allclose(values, shifted[name], atol=1e-9)
        alone = metrics.log_prob_metrics(logits[2], labels)[name]
        np.testing.assert_allclose(values[2], alone)


def test_log_prob_metrics_do_not_saturate():
    result = metrics.log_prob_metrics([[900.0, -900.0]], [1])
    assert result["mean_log_prob"] == pytest.approx(-1800)
    assert result["mean_logit"] == pytest.approx(-1800)


def test_log_prob_metrics_limits():
    empty = metrics.log_prob_metrics(np.zeros((0, 2)), np.zeros(0, int))
    assert all(np.isnan(value) for value in empty.values())
    with pytest.raises(ValueError, match="2 classes"):
        metrics.log_prob_metrics([[1.0]], [0])
    with pytest.raises(ValueError, match="labels"):
        metrics.log_prob_metrics([[1.0, 2.0]], [2])
    with pytest.raises(ValueError, match="must be"):
        metrics.log_prob_metrics([[1.0, 2.0]], [0, 1])
