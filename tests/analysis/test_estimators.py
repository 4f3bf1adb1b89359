"""Lines and their intervals: against other programs, by hand, and what must not change them."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from benchmarks import coverage
from robustjax.analysis.attack_scaling import METHODS, attack_scaling
from robustjax.analysis.censored import censored_fit
from robustjax.analysis.estimators import Fit, least_squares, mean_over, size_trend
from robustjax.analysis.seed_bootstrap import resamples, with_interval

LINE_X, LINE_Y = [0, 0.3, 0.5, 0.7, 1.0], [-1.2, -0.7, -0.6, 0.1, 0.4]

ITERATIONS = np.log10([1, 2, 4, 8])
BROKEN = np.array([[2, 5, 12, 19], [3, 8, 15, 23], [0, 4, 9, 9]])
TRIALS = np.full((3, 4), 30)
OFFERED = np.full(3, 40)

# Two seeds, five rounds; nobody reaches the target for more than 10 ** 1.
ROUND_X = np.array([0, 0.5, 1, 1.5, 2, 0, 0.5, 1, 1.5, 2])
COST_Y = np.array([0.1, 0.3, 0.9, 1, 1, -0.1, 0.5, 0.6, 1, 1])
CENSORED = np.array([0, 0, 0, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
SEED = np.repeat([0, 1], 5)


def numbers(fit):
    return [value for value in dataclasses.astuple(fit) if isinstance(value, float)]


def draws_one_by_one(num_seeds, fit_seeds):
    """Standard deviation of the slope over all ordered draws, each fitted anew."""
    draws = itertools.product(range(num_seeds), repeat=num_seeds)
    return float(np.std([fit_seeds(list(draw)).slope for draw in draws]))


def half_width(fit):
    return (fit.ci_high - fit.ci_low) / 2


class TestLines:
    def test_least_squares_is_that_of_statsmodels(self):
        fit = least_squares(LINE_X, LINE_Y)

        # statsmodels 0.15.0, OLS.
        assert (fit.slope, fit.intercept) == pytest.approx((1.655172413793, -1.227586206897))
        assert (fit.ci_low, fit.ci_high) == pytest.approx((1.012157461311, 2.298187366275))
        assert fit.r2 == pytest.approx(0.9572081429164935)
        assert (fit.n, fit.n_dropped, fit.interval, fit.num_seeds) == (5, 0, "OLS 95 %", 0)

    def test_two_points_have_a_line_without_interval(self):
        fit = least_squares([1, 3], [5, 9])

        assert (fit.slope, fit.intercept, fit.n, fit.interval) == (2, 3, 2, "")
        assert math.isnan(fit.ci_low) and math.isnan(fit.ci_high)

    def test_no_line_through_one_abscissa_and_no_r2_of_a_constant(self):
        assert least_squares([2, 2, 2], [1, 2, 3]) is None
        assert least_squares([], []) is None
        flat = least_squares([1, 2, 3], [4, 4, 4])
        assert flat.slope == 0 and math.isnan(flat.r2) and flat.ci_low == flat.ci_high == 0

    @pytest.mark.parametrize(("x", "y"), [([1, 2], [1, math.nan]), ([1, 2, 3], [1, 2])])
    def test_what_is_not_a_point_is_refused(self, x, y):
        with pytest.raises(ValueError, match="finite and of one length"):
            least_squares(x, y)

    def test_size_trend_leaves_out_each_size(self):
        # By hand: all four 0.6; without the first 1, the second 5 / 7, the third 4 / 7, the last 0.
        trend = size_trend([0, 1, 2, 3], [0, 0, 0, 2])
        assert trend.fit.slope == pytest.approx(0.6)
        assert (trend.loso_low, trend.loso_high) == pytest.approx((0, 1))
        assert trend.most_influential == 3
        assert trend.fit.interval == "OLS 95 %"

    def test_the_most_influential_size_may_stand_anywhere(self):
        assert size_trend([3, 0, 1, 2], [2, 0, 0, 0]).most_influential == 0

    def test_a_trend_needs_three_sizes(self):
        assert size_trend([1, 2], [1, 2]) is None
        assert size_trend([1, 2, 2], [1, 2, 3]) is None
        assert size_trend([1, 2, 3], [1, 2, 3]) is not None

    def test_mean_is_that_of_statsmodels(self):
        found = mean_over([1, 2, 4, 7])
        # statsmodels 0.15.0, DescrStatsW.tconfint_mean.
        assert (found.ci_low, found.ci_high) == pytest.approx((-0.70998074, 7.70998074))
        assert found.mean == 3.5

    def test_one_value_has_no_interval_and_none_no_mean(self):
        assert mean_over([3]).mean == 3 and math.isnan(mean_over([3]).ci_low)
        assert math.isnan(mean_over([]).mean)


class TestSeedBootstrap:
    @pytest.mark.parametrize(("num_seeds", "num_draws"), [(1, 1), (2, 3), (3, 10), (5, 126)])
    def test_few_seeds_are_drawn_in_every_way(self, num_seeds, num_draws):
        drawn = resamples(num_seeds)

        assert drawn.counts.shape == (num_draws, num_seeds)
        assert (drawn.counts.sum(axis=1) == num_seeds).all()
        assert len(np.unique(drawn.counts, axis=0)) == num_draws
        assert drawn.probabilities.sum() == pytest.approx(1)
        # Each seed is drawn once on average, with the variance of a binomial.
        mean = drawn.probabilities @ drawn.counts
        variance = drawn.probabilities @ (drawn.counts - 1) ** 2
        assert mean == pytest.approx(np.ones(num_seeds))
        assert variance == pytest.approx(np.full(num_seeds, 1 - 1 / num_seeds))

    def test_three_seeds_by_hand(self):
        drawn = resamples(3)
        chances = dict(zip(map(tuple, drawn.counts), drawn.probabilities, strict=True))
        assert chances[1, 1, 1] == pytest.approx(6 / 27)
        assert chances[2, 1, 0] == pytest.approx(3 / 27)
        assert chances[0, 0, 3] == pytest.approx(1 / 27)

    def test_many_seeds_are_drawn_500_times_and_always_alike(self):
        drawn = resamples(8)
        resamples.cache_clear()
        again = resamples(8)
        assert drawn.counts.shape == (500, 8) and drawn.probabilities.sum() == pytest.approx(1)
        np.testing.assert_array_equal(drawn.counts, again.counts)

    @pytest.mark.parametrize("values", [[1, 2], [1, 2, 4], [3, 1, 4, 1, 5]])
    def test_of_a_mean_it_is_students_interval(self, values):
        drawn, student = resamples(len(values)), mean_over(values)
        fit = with_interval(
            Fit(student.mean, 0.0, math.nan, 9), drawn.counts @ values / len(values), drawn
        )
        assert (fit.ci_low, fit.ci_high) == pytest.approx((student.ci_low, student.ci_high))
        assert (fit.num_seeds, fit.interval) == (len(values), f"bootstrap over {len(values)} seeds")

    def test_draws_without_a_slope_are_left_out_if_they_are_few(self):
        drawn, fit = resamples(3), Fit(2.0, 0.0, math.nan, 9)
        slopes = drawn.counts @ [1.0, 2.0, 3.0] / 3
        alone = (drawn.counts == 3).any(axis=1)

        few = with_interval(fit, np.where(alone, math.nan, slopes), drawn)
        many = with_interval(fit, np.where(drawn.counts[:, 0] == 0, math.nan, slopes), drawn)

        # By hand: the squares of all 27 ordered draws sum to 6, those of three times the first or
        # the last seed to 2, and 24 draws are left.
        variance = (6 - 2) / 24 * 3 / 2
        assert half_width(few) == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(variance))
        assert math.isnan(many.ci_low) and many.interval == "" and many.num_seeds == 3


class TestAttackScaling:
    def test_the_released_method_drops_what_has_no_log_odds(self):
        broken = [[0, 10, 20, 30], [3, 10, 20, 27]]
        trials = [[30] * 4, [30, 30, 30, 30]]
        fit = attack_scaling([0, 1, 2, 3], broken, trials, [40, 40], "raw_finite")

        # Log-odds left: of the first -log 2, log 2; of the second -log 9, -log 2, log 2, log 9.
        x, y = [1, 2, 0, 1, 2, 3], np.log10([0.5, 2, 1 / 9, 0.5, 2, 9])
        expected = least_squares(x, y)
        assert (fit.n, fit.n_dropped, fit.num_seeds) == (6, 2, 2)
        assert numbers(fit) == pytest.approx(numbers(expected))

    def test_laplace_smooths_with_the_examples_offered(self):
        fit = attack_scaling([0, 1], [[0, 30]], [[30, 30]], [98], "laplace")

        assert (fit.n, fit.n_dropped) == (2, 0)
        assert fit.intercept == pytest.approx(math.log10(1 / 99))
        assert fit.slope == pytest.approx(2 * math.log10(99))

    @pytest.mark.parametrize("method", METHODS)
    def test_what_was_not_measured_is_no_point(self, method):
        more = np.append(ITERATIONS, 7), np.pad(BROKEN, ((0, 1), (0, 1)))
        trials = np.pad(TRIALS, ((0, 1), (0, 1)))
        fit = attack_scaling(*more, trials, [40] * 4, method)

        expected = attack_scaling(ITERATIONS, BROKEN, TRIALS, OFFERED, method)
        assert numbers(fit) == pytest.approx(numbers(expected), nan_ok=True)
        assert (fit.n, fit.n_dropped, fit.num_seeds) == (
            expected.n,
            expected.n_dropped,
            expected.num_seeds,
        )

    def test_with_many_examples_it_is_the_logistic_regression_of_statsmodels(self):
        broken = np.array([[20, 55, 120, 190], [35, 80, 150, 230]]) * 1000
        fit = attack_scaling(ITERATIONS, broken, np.full((2, 4), 300_000), [300_000] * 2)

        # statsmodels 0.15.0, GLM with family Binomial and an intercept per seed, over log(10);
        # of 300,000 examples the prior is worth 1e-6 of the slope.
        assert fit.slope == pytest.approx(1.528016757706, rel=3e-6)
        assert fit.intercept == pytest.approx(-1.0069187013347713, rel=3e-6)
        assert fit.r2 == pytest.approx(0.99832555, abs=1e-5)  # of the rates that it fits

    def test_it_maximises_the_likelihood_with_jeffreys_prior(self):
        def loss(parameters):
            odds = parameters[1:, None] + parameters[0] * ITERATIONS
            likelihood = BROKEN * odds - TRIALS * np.logaddexp(0, odds)
            information = TRIALS / (2 * np.cosh(odds / 2)) ** 2
            design = np.stack([np.ones(4), ITERATIONS])
            fisher = np.einsum("si,ji,ki->sjk", information, design, design)
            return -likelihood.sum() - np.linalg.slogdet(fisher)[1].sum() / 2

        found = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-7}).x
        fit = attack_scaling(ITERATIONS, BROKEN, TRIALS, OFFERED)

        assert fit.slope == pytest.approx(found[0] / math.log(10), rel=1e-6)
        assert fit.intercept == pytest.approx(found[1:].mean() / math.log(10), rel=1e-6)
        assert (fit.n, fit.num_seeds, fit.interval) == (12, 3, "bootstrap over 3 seeds")

    def test_its_interval_is_that_of_fitting_every_draw(self):
        fit = attack_scaling(ITERATIONS, BROKEN, TRIALS, OFFERED)

        deviation = draws_one_by_one(
            3, lambda draw: attack_scaling(ITERATIONS, BROKEN[draw], TRIALS[draw], OFFERED)
        )
        expected = stats.t.ppf(0.975, 2) * deviation * math.sqrt(3 / 2)
        # The scores are interpolated between nodes.
        assert half_width(fit) == pytest.approx(expected, rel=5e-5)
        assert (fit.ci_low + fit.ci_high) / 2 == pytest.approx(fit.slope)

    def test_it_is_so_too_where_one_seed_is_steep(self):
        broken = np.array([[0, 0, 0, 1], [3, 4, 4, 5], [2, 3, 3, 3]])
        fit = attack_scaling(ITERATIONS, broken, TRIALS, OFFERED)

        deviation = draws_one_by_one(
            3, lambda draw: attack_scaling(ITERATIONS, broken[draw], TRIALS[draw], OFFERED)
        )
        expected = stats.t.ppf(0.975, 2) * deviation * math.sqrt(3 / 2)
        assert half_width(fit) == pytest.approx(expected, rel=5e-5)

    def test_a_seed_without_success_or_without_failure_changes_nothing(self):
        broken = np.vstack([BROKEN, [0] * 4, [30] * 4])
        fit = attack_scaling(ITERATIONS, broken, np.full((5, 4), 30), [40] * 5)

        expected = attack_scaling(ITERATIONS, BROKEN, TRIALS, OFFERED)
        assert numbers(fit) == numbers(expected)
        assert (fit.n, fit.n_dropped, fit.num_seeds) == (12, 8, 3)

    def test_rates_of_zero_steepen_the_slope(self):
        rates = np.array([[0, 0, 6, 12]]), np.full((1, 4), 30)
        honest = attack_scaling(ITERATIONS, *rates, [30])
        without = attack_scaling(ITERATIONS[2:], *(one[:, 2:] for one in rates), [30])
        assert honest.slope > without.slope > 0

    def test_one_seed_has_a_slope_and_no_interval(self):
        fit = attack_scaling(ITERATIONS, BROKEN[:1], TRIALS[:1], OFFERED[:1])
        assert fit.slope > 0 and math.isnan(fit.ci_low) and fit.interval == ""
        assert fit.num_seeds == 1

    @pytest.mark.parametrize("broken", [[0, 0, 0, 0], [30, 30, 30, 30]])
    def test_no_slope_without_both_outcomes(self, broken):
        assert attack_scaling(ITERATIONS, [broken], TRIALS[:1], [40]) is None

    def test_a_step_is_no_line_and_the_first_success_is_one(self):
        x = np.log10(np.arange(1, 1281))
        step = np.where(np.arange(1280) < 700, 0, 180)[None]
        assert attack_scaling(x, step, np.full((1, 1280), 180), [200]) is None
        last = attack_scaling(ITERATIONS, [[0, 0, 0, 1]], TRIALS[:1], [40])
        assert 0 < last.slope < 3

    def test_six_seeds_have_an_interval_of_the_width_of_three_twice(self):
        fit = attack_scaling(ITERATIONS, np.vstack([BROKEN] * 2), np.vstack([TRIALS] * 2), [40] * 6)
        three = attack_scaling(ITERATIONS, BROKEN, TRIALS, OFFERED)
        # Twice the seeds: root 1 / 2, degrees of freedom 5, variance with 6 / 5 for 3 / 2.
        ratio = stats.t.ppf(0.975, 5) / stats.t.ppf(0.975, 2) * math.sqrt(6 / 5 / 3)
        assert half_width(fit) == pytest.approx(ratio * half_width(three), rel=0.1)
        assert fit.num_seeds == 6

    def test_counts_that_cannot_be_are_refused(self):
        with pytest.raises(ValueError, match="shapes|successes"):
            attack_scaling(ITERATIONS[:3], BROKEN, TRIALS, OFFERED)
        with pytest.raises(ValueError, match=r"0\.\.trials"):
            attack_scaling(ITERATIONS, BROKEN + 20, TRIALS, OFFERED)
        with pytest.raises(ValueError, match="none of raw_finite, laplace, binomial"):
            attack_scaling(ITERATIONS, BROKEN, TRIALS, OFFERED, "probit")


@st.composite
def studies(draw):
    """Counts of two to five seeds at three to eight iterations."""
    shape = draw(st.integers(2, 5)), draw(st.integers(3, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    trials = rng.integers(30, 60, shape)
    broken = rng.binomial(trials, rng.choice([0.1, 0.4, 0.9]))
    return np.log10(np.arange(1, shape[1] + 1)), broken, trials, trials.max(axis=1)


class TestInvariance:
    @settings(max_examples=40)
    @given(study=studies(), shift=st.floats(-20, 20), scale=st.floats(0.3, 3))
    def test_of_attack_scaling(self, study, shift, scale):
        x, broken, trials, offered = study
        fit = attack_scaling(x, broken, trials, offered)
        moved = attack_scaling(shift + scale * x, broken, trials, offered)
        turned = attack_scaling(x, broken[::-1], trials[::-1], offered[::-1])
        failures = attack_scaling(x, trials - broken, trials, offered)
        if fit is None:
            assert moved is turned is failures is None
            return
        ends = np.array([fit.slope, fit.ci_low, fit.ci_high])
        close = {"rel": 1e-6, "abs": 1e-7, "nan_ok": True}
        assert [moved.slope * scale, moved.ci_low * scale, moved.ci_high * scale] == pytest.approx(
            ends, **close
        )
        assert numbers(turned) == pytest.approx(numbers(fit), **close)
        assert [failures.slope, failures.ci_high, failures.ci_low] == pytest.approx(-ends, **close)

    @settings(max_examples=20)
    @given(study=studies())
    def test_of_attack_scaling_under_doubling_the_seeds(self, study):
        x, broken, trials, offered = study
        once = attack_scaling(x, broken, trials, offered)
        twice = attack_scaling(
            x, np.vstack([broken] * 2), np.vstack([trials] * 2), np.tile(offered, 2)
        )
        assert (once is None) == (twice is None)
        if once:
            assert twice.slope == pytest.approx(once.slope, rel=1e-6, abs=1e-7)
            assert twice.intercept == pytest.approx(once.intercept, rel=1e-6, abs=1e-7)

    @settings(max_examples=30)
    @given(
        number=st.integers(0, 10**6),
        shift=st.floats(-20, 20),
        scale=st.floats(0.3, 3),
        budget=st.floats(0.6, 2),
    )
    def test_of_the_censored_fit(self, number, shift, scale, budget):
        rng = np.random.default_rng(number)
        x, seed = np.tile(np.linspace(0, 2, 6), 3), np.repeat([0, 1, 2], 6)
        y = 0.7 * x + 0.2 * rng.standard_normal(18)
        censored, y = y > budget, np.minimum(y, budget)
        fit = censored_fit(x, y, censored, seed)
        moved = censored_fit(shift + scale * x, shift + scale * y, censored, seed)
        order = rng.permutation(18)
        mixed = censored_fit(x[order], y[order], censored[order], 7 - seed[order])
        close = {"rel": 1e-6, "abs": 1e-7, "nan_ok": True}
        ends = [fit.slope, fit.ci_low, fit.ci_high]
        assert [moved.slope, moved.ci_low, moved.ci_high] == pytest.approx(ends, **close)
        assert moved.intercept == pytest.approx(
            shift + scale * fit.intercept - fit.slope * shift, **close
        )
        assert numbers(mixed) == pytest.approx(numbers(fit), **close)


class TestCensored:
    def test_it_is_the_maximum_of_the_likelihood_that_statsmodels_finds(self):
        fit = censored_fit(ROUND_X, COST_Y, CENSORED, SEED)

        # statsmodels 0.15.0, GenericLikelihoodModel with norm.logpdf and, censored, norm.logsf.
        assert fit.slope == pytest.approx(0.70904307789, rel=1e-5)
        assert fit.intercept == pytest.approx(0.021981117548, rel=1e-4)
        assert (fit.n, fit.n_dropped, fit.num_seeds) == (10, 0, 2)
        assert fit.interval == "bootstrap over 2 seeds" and math.isnan(fit.r2)

    def test_dropping_the_censored_would_flatten_the_line(self):
        dropped = least_squares(ROUND_X[~CENSORED], COST_Y[~CENSORED])
        taken_at_the_budget = least_squares(ROUND_X, COST_Y)
        fit = censored_fit(ROUND_X, COST_Y, CENSORED, SEED)
        assert fit.slope > dropped.slope > taken_at_the_budget.slope

    def test_without_censoring_it_is_least_squares(self):
        fit = censored_fit(ROUND_X, COST_Y, np.zeros(10), SEED)
        expected = least_squares(ROUND_X, COST_Y)
        assert (fit.slope, fit.intercept) == pytest.approx((expected.slope, expected.intercept))

    def test_its_interval_is_that_of_fitting_every_draw(self):
        rng = np.random.default_rng(4)
        x, y = np.tile(np.linspace(0, 2, 6), (3, 1)), np.empty((3, 6))
        y = 0.7 * x + 0.2 * rng.standard_normal((3, 6))
        censored, y = y > 1, np.minimum(y, 1)

        def fit_seeds(draw):
            names = np.repeat([0, 1, 2], 6)
            return censored_fit(x[draw].ravel(), y[draw].ravel(), censored[draw].ravel(), names)

        expected = stats.t.ppf(0.975, 2) * draws_one_by_one(3, fit_seeds) * math.sqrt(3 / 2)
        assert half_width(fit_seeds([0, 1, 2])) == pytest.approx(expected, rel=1e-6)

    def test_a_higher_budget_not_reached_means_a_steeper_line(self):
        higher = np.where(CENSORED, COST_Y + 0.3, COST_Y)
        steeper = censored_fit(ROUND_X, higher, CENSORED, SEED)
        assert steeper.slope > censored_fit(ROUND_X, COST_Y, CENSORED, SEED).slope

    def test_points_on_a_line_are_that_line(self):
        x = np.arange(6.0)
        y = np.minimum(2 * x + 1, 6)
        fit = censored_fit(x, y, y == 6, [0, 1] * 3)
        assert (fit.slope, fit.intercept) == pytest.approx((2, 1), abs=1e-3)

    def test_no_line_of_too_few_uncensored_points(self):
        two_seen = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 1], dtype=bool)
        assert censored_fit(ROUND_X, COST_Y, two_seen, SEED) is None
        assert censored_fit(ROUND_X, COST_Y, np.ones(10), SEED) is None
        assert censored_fit(ROUND_X, COST_Y, ROUND_X > 0, SEED) is None
        assert censored_fit([0, 0, 0, 1], [1, 2, 1, 3], [0, 0, 0, 1], [0] * 4) is None
        assert censored_fit([], [], [], []) is None

    def test_no_interval_if_one_of_two_seeds_never_reached_the_target(self):
        fit = censored_fit(ROUND_X, COST_Y, CENSORED | (SEED == 1), SEED)
        assert fit.slope > 0 and math.isnan(fit.ci_low) and fit.interval == ""

    def test_what_is_not_a_point_is_refused(self):
        with pytest.raises(ValueError, match="of one length"):
            censored_fit(ROUND_X, COST_Y[:9], CENSORED, SEED)
        with pytest.raises(ValueError, match="finite"):
            censored_fit(ROUND_X, np.full(10, np.nan), CENSORED, SEED)


SIMULATIONS = 100


def measured(cell):
    return coverage.measure(cell, SIMULATIONS)["methods"]


def is_honest(share):
    """Whether 100 studies may give that coverage if the true one is 90 to 99 %, but for 0.1 %."""
    low = stats.binom.ppf(0.001, SIMULATIONS, 0.90) / SIMULATIONS
    high = stats.binom.ppf(0.999, SIMULATIONS, 0.99) / SIMULATIONS
    return low <= share <= high


@pytest.mark.slow
def test_intervals_of_attack_scaling_hold_the_truth():
    methods = measured(coverage.attack_cell(5, 128, "mid"))
    assert is_honest(methods["binomial"]["coverage"])
    assert not is_honest(methods["raw_finite"]["coverage"])
    assert abs(methods["binomial"]["bias"]) < abs(methods["raw_finite"]["bias"]) / 2


@pytest.mark.slow
def test_intervals_of_offence_against_defence_hold_the_truth_under_censoring():
    methods = measured(coverage.defence_cell(3, 23, 0.4))
    assert is_honest(methods["censored"]["coverage"])
    assert not is_honest(methods["median_fit"]["coverage"])
    assert not is_honest(methods["percentile"]["coverage"])
    assert abs(methods["censored"]["bias"]) < abs(methods["median_fit"]["bias"]) / 2


def test_a_cell_of_the_coverage_study_has_what_its_table_needs():
    found = coverage.measure(coverage.defence_cell(2, 8, 0.2), 5)
    assert {"seeds": 2, "rounds": 8, "slope": 0.7}.items() <= found.items()
    assert 0 < found["censored"] < 0.5
    assert set(found["methods"]) == {"censored", "percentile", "seed_fit", "median_fit"}
    for method in found["methods"].values():
        assert set(method) == {"coverage", "bias", "median_width", "no_interval"}


def test_the_study_has_every_cell():
    settings_of = [cell.setting for cell in coverage.cells()]
    assert len(settings_of) == 8 + 18 + 2
