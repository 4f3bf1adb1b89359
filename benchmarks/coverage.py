"""How often the 95 % intervals of slopes hold the truth, on simulated studies of a known slope.

python -m benchmarks.coverage [--simulations=400]

Prints a line of JSON for each cell: of each method the share of its intervals that hold the true
slope, the mean error of the slope, the median width of the interval, and the share of studies
without one. The true slope is the mean over all seeds there could be: seeds differ, and another
study would draw others. An attacked example has one threshold in all iterations, so the points of
a seed are strongly dependent, as they are where an attack goes on from its last text.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from robustjax.analysis import attack_scaling, binomial, seed_bootstrap
from robustjax.analysis.censored import censored_fit
from robustjax.analysis.estimators import Fit, FloatArray, least_squares, mean_over, size_trend

NUM_EXAMPLES, ACCURACY = 200, 0.9
SEED_LOG_ODDS, SEED_ODDS_SLOPE = 0.3, 0.15
LOW_LOG_ODDS = -2.5

DECADES = 2.5
ROUND_NOISE, SEED_OFFSET, SEED_COST_SLOPE = 0.1, 0.1, 0.05

LOG10_PARAMS = np.log10([7.6e6, 17.6e6, 44.7e6, 123.7e6, 353.8e6, 908.8e6, 1.31e9, 2.65e9])
RESIDUAL = 0.15

Estimate = tuple[float, float, float]
"""Slope and interval; NaN where there is none."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One kind of simulated study.

    Attributes:
        setting: what is varied, by name.
        truth: the slope.
        simulate: draws a study and gives each method's estimate, and what is to be averaged.
    """

    setting: dict[str, Any]
    truth: float
    simulate: Callable[[np.random.Generator], tuple[dict[str, Estimate], dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage")
    parser.add_argument("--simulations", default=400, type=int)
    given = parser.parse_args()
    for cell in cells():
        print(json.dumps(measure(cell, given.simulations)), flush=True)


def cells() -> Iterator[Cell]:
    """All kinds of studies."""
    for num_seeds in (3, 5):
        for iterations in (10, 128):
            yield attack_cell(num_seeds, iterations, "mid")
            yield attack_cell(num_seeds, iterations, "low")
    for num_seeds in (2, 3, 5):
        for rounds in (8, 23):
            for censored in (0.0, 0.2, 0.4):
                yield defence_cell(num_seeds, rounds, censored)
    yield Cell({"analysis": "trend over 8 sizes"}, -0.3, _size_trend)
    yield Cell({"analysis": "mean over 8 sizes"}, -0.3, _mean)


def measure(cell: Cell, simulations: int) -> dict[str, Any]:
    """Coverage, bias and width of each method."""
    rng = np.random.default_rng(0)
    studies = [cell.simulate(rng) for _ in range(simulations)]
    facts = {
        name: round(float(np.mean([f[name] for _, f in studies])), 3) for name in studies[0][1]
    }
    methods = {}
    for method in studies[0][0]:
        found = np.array([estimates[method] for estimates, _ in studies])
        slope, low, high = found[np.isfinite(found[:, 0])].T
        with_interval = np.isfinite(low)
        covers = (low <= cell.truth) & (cell.truth <= high)
        methods[method] = {
            "coverage": round(float(covers[with_interval].mean()), 3),
            "bias": round(float(slope.mean()) - cell.truth, 4),
            "median_width": round(float(np.median((high - low)[with_interval])), 3),
            "no_interval": round(1 - int(with_interval.sum()) / simulations, 3),
        }
    return {**cell.setting, "slope": cell.truth, **facts, "methods": methods}


def attack_cell(num_seeds: int, iterations: int, rates: str) -> Cell:
    """Attacks whose success grows with compute, around one half ("mid") or near zero ("low")."""
    truth, x = (2.0 if rates == "mid" else 0.5), np.log10(np.arange(1, iterations + 1))
    start = -truth * float(x[-1]) / 2 if rates == "mid" else LOW_LOG_ODDS

    def simulate(rng: np.random.Generator) -> tuple[dict[str, Estimate], dict[str, float]]:
        offset = start + SEED_LOG_ODDS * rng.standard_normal(num_seeds)
        slope = truth + SEED_ODDS_SLOPE * rng.standard_normal(num_seeds)
        p = 1 / (1 + 10 ** -(offset[:, None] + slope[:, None] * x))
        attacked = rng.binomial(NUM_EXAMPLES, ACCURACY, num_seeds)
        thresholds = [np.sort(rng.random(n)) for n in attacked]
        broken = np.array([np.searchsorted(*pair) for pair in zip(thresholds, p, strict=True)])
        trials = np.broadcast_to(attacked[:, None], broken.shape)
        offered = np.full(num_seeds, NUM_EXAMPLES)
        estimates = {
            method: _estimate(attack_scaling.attack_scaling(x, broken, trials, offered, method))
            for method in attack_scaling.METHODS
        }
        counts = broken.astype(np.float64), trials.astype(np.float64)
        estimates["percentile"] = _estimate(binomial.fit_common_slope(x, *counts, _percentiles))
        return estimates, {"rates_of_zero": float((broken == 0).mean())}

    setting = {"analysis": "attack scaling", "seeds": num_seeds, "iterations": iterations}
    return Cell({**setting, "rates": rates}, truth, simulate)


def defence_cell(num_seeds: int, rounds: int, censored: float) -> Cell:
    """Attacks that need more compute the more the defence had, up to a budget."""
    truth, x = 0.7, np.linspace(0, DECADES, rounds)
    budget = float(np.quantile(truth * x, 1 - censored)) if censored else math.inf

    def simulate(rng: np.random.Generator) -> tuple[dict[str, Estimate], dict[str, float]]:
        offset = SEED_OFFSET * rng.standard_normal((num_seeds, 1))
        slope = truth + SEED_COST_SLOPE * rng.standard_normal((num_seeds, 1))
        y = offset + slope * x + ROUND_NOISE * rng.standard_normal((num_seeds, rounds))
        is_censored = y > budget
        points = np.tile(x, num_seeds), np.minimum(y, budget).ravel(), is_censored.ravel()
        seeds = np.repeat(np.arange(num_seeds), rounds)
        reached = np.where(is_censored, np.nan, y)
        some = ~is_censored.all(axis=0)
        estimates = {
            "censored": _estimate(censored_fit(*points, seeds)),
            "percentile": _estimate(censored_fit(*points, seeds, _percentiles)),
            "seed_fit": _estimate(least_squares(points[0][~points[2]], y[~is_censored])),
            "median_fit": _estimate(least_squares(x[some], np.nanmedian(reached[:, some], axis=0))),
        }
        return estimates, {"censored": float(is_censored.mean())}

    setting = {"analysis": "offence against defence", "seeds": num_seeds, "rounds": rounds}
    return Cell({**setting, "budget_for": 1 - censored}, truth, simulate)


def _size_trend(rng: np.random.Generator) -> tuple[dict[str, Estimate], dict[str, float]]:
    slopes = 3 - 0.3 * LOG10_PARAMS + RESIDUAL * rng.standard_normal(LOG10_PARAMS.size)
    trend = size_trend(LOG10_PARAMS, slopes)
    return {"least squares": _estimate(trend and trend.fit)}, {}


def _mean(rng: np.random.Generator) -> tuple[dict[str, Estimate], dict[str, float]]:
    found = mean_over(-0.3 + RESIDUAL * rng.standard_normal(LOG10_PARAMS.size))
    return {"Student": (found.mean, found.ci_low, found.ci_high)}, {}


def _estimate(fit: Fit | None) -> Estimate:
    return (fit.slope, fit.ci_low, fit.ci_high) if fit else (math.nan, math.nan, math.nan)


def _percentiles(fit: Fit, slopes: FloatArray, drawn: seed_bootstrap.Resamples) -> Fit:
    """The interval that bootstraps usually have, to show what it is worth with few seeds."""
    known = np.isfinite(slopes)
    if drawn.counts.shape[1] < 2 or not known.any():
        return fit
    order = np.argsort(slopes[known])
    below = np.cumsum(drawn.probabilities[known][order])
    low, high = np.searchsorted(below / below[-1], (0.025, 0.975))
    ordered = slopes[known][order]
    return dataclasses.replace(fit, ci_low=float(ordered[low]), ci_high=float(ordered[high]))


if __name__ == "__main__":
    main()
