"""Proportions with intervals: one number a point of a figure, however many seeds are behind it."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from robustjax.evaluation import metrics

WILSON = "Wilson 95 %"
SEED_RANGE = "min-max over seeds"


@dataclasses.dataclass(frozen=True)
class Count:
    """What one seed measured: `successes` of `trials`, out of `offered` examples."""

    successes: int
    trials: int
    offered: int


@dataclasses.dataclass(frozen=True)
class Rate:
    """A proportion over seeds.

    With one seed `value` is the proportion and the interval is Wilson's; with several, `value` is
    the median and the interval runs from the smallest to the largest seed. `pooled` throws all
    trials together and always has a Wilson interval. Smoothing is Laplace's, `(p n + 1) / (n + 2)`
    with `n` the examples offered, as in Howe et al. 2024 (arXiv 2407.18213); Wilson bounds are not
    smoothed. Seeds without a trial are left out; without any, all is NaN.

    Attributes:
        num_seeds: seeds with at least one trial.
        offered: examples offered, over all those seeds.
        trials: denominator, over all those seeds.
    """

    num_seeds: int
    offered: int
    trials: int
    value: float
    low: float
    high: float
    interval: str
    smoothed: float
    smoothed_low: float
    smoothed_high: float
    pooled: float
    pooled_low: float
    pooled_high: float


def combine(counts: Sequence[Count]) -> Rate:
    """Combine the counts of several seeds into one rate."""
    counts = [count for count in counts if count.trials]
    rates = [count.successes / count.trials for count in counts]
    smooth = [
        metrics.smoothed(rate, count.offered) for rate, count in zip(rates, counts, strict=True)
    ]
    successes, trials = sum(c.successes for c in counts), sum(c.trials for c in counts)
    pooled_low, pooled_high = metrics.wilson_interval(successes, trials)
    if len(counts) > 1:
        low, high, interval = min(rates), max(rates), SEED_RANGE
        smooth_low, smooth_high = min(smooth), max(smooth)
    else:
        low, high, interval = pooled_low, pooled_high, WILSON
        smooth_low, smooth_high = pooled_low, pooled_high
    return Rate(
        num_seeds=len(counts),
        offered=sum(c.offered for c in counts),
        trials=trials,
        value=median(rates),
        low=low,
        high=high,
        interval=interval,
        smoothed=median(smooth),
        smoothed_low=smooth_low,
        smoothed_high=smooth_high,
        pooled=successes / trials if trials else math.nan,
        pooled_low=pooled_low,
        pooled_high=pooled_high,
    )


def median(values: Sequence[float]) -> float:
    """The median of what is not NaN; NaN of nothing."""
    finite = [value for value in values if not math.isnan(value)]
    return statistics.median(finite) if finite else math.nan
