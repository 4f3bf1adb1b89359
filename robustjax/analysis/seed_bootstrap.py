"""The bootstrap over seeds: whole seeds are drawn with replacement, never single points.

Points of one seed share a model and its attacked examples, so they are not independent; seeds are
(Davison & Hinkley 1997, Bootstrap Methods and their Application, sections 2.4 and 3.8).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

from robustjax.analysis.estimators import Fit, FloatArray, t_quantile

MAX_EXACT_SEEDS = 5
NUM_RESAMPLES = 500
RANDOM_SEED = 0
MIN_DEFINED = 0.8


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Draws of S seeds from S seeds.

    Attributes:
        counts: [B, S] how often each seed is in each draw; rows sum to S.
        probabilities: [B] of the draws; they sum to 1.
    """

    counts: FloatArray
    probabilities: FloatArray


Interval = Callable[[Fit, FloatArray, Resamples], Fit]
"""Gives a fit its interval, from the [B] slopes of the draws."""


@functools.cache
def resamples(num_seeds: int) -> Resamples:
    """All draws up to five seeds (then nothing is random), 500 of a fixed stream for more.

    Five seeds have 126 distinct draws, whose probabilities are multinomial.
    """
    if num_seeds > MAX_EXACT_SEEDS:
        rng = np.random.default_rng(RANDOM_SEED)
        shares = np.full(num_seeds, 1 / num_seeds)
        counts = rng.multinomial(num_seeds, shares, NUM_RESAMPLES).astype(np.float64)
        return Resamples(counts, np.full(NUM_RESAMPLES, 1 / NUM_RESAMPLES))
    draws = itertools.combinations_with_replacement(range(num_seeds), num_seeds)
    counts = np.array([np.bincount(draw, minlength=num_seeds) for draw in draws])
    orders = [math.factorial(num_seeds) / math.prod(map(math.factorial, row)) for row in counts]
    return Resamples(counts.astype(np.float64), np.array(orders) / num_seeds**num_seeds)


def with_interval(fit: Fit, slopes: FloatArray, drawn: Resamples) -> Fit:
    """The fit with `slope +- t sqrt(S / (S - 1)) se`, where `se` is the bootstrap's.

    The bootstrap's variance of a mean is (S - 1) / S of the unbiased one, which the root undoes;
    `t` has S - 1 degrees of freedom. For a mean over seeds this is Student's interval exactly.
    Draws without a slope are left out. There is no interval for one seed, nor where more than a
    fifth of the draws have no slope: then a few seeds carry the line, and their spread is unknown.

    Args:
        fit: what all seeds give.
        slopes: [B] slope of each draw; NaN where it has none.
        drawn: the draws.
    """
    num_seeds = drawn.counts.shape[1]
    fit = dataclasses.replace(fit, num_seeds=num_seeds)
    known = np.isfinite(slopes)
    if num_seeds < 2 or drawn.probabilities[known].sum() < MIN_DEFINED:
        return fit
    weights = drawn.probabilities[known] / drawn.probabilities[known].sum()
    spread = slopes[known] - weights @ slopes[known]
    variance = float(weights @ spread**2) * num_seeds / (num_seeds - 1)
    half_width = t_quantile(num_seeds - 1) * math.sqrt(variance)
    return dataclasses.replace(
        fit,
        ci_low=fit.slope - half_width,
        ci_high=fit.slope + half_width,
        interval=f"bootstrap over {num_seeds} seeds",
    )
