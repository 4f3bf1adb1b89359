"""Robustness metrics as pure functions of numpy arrays.

Definitions follow Howe et al. 2024 (arXiv 2407.18213). A rate without a denominator is NaN, never
an exception: an attack on a victim that was wrong everywhere is a result, not an accident. This
module never imports jax, so results can be analysed where jax is not installed.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

ArrayLike = npt.NDArray[Any] | Sequence[Any] | float | int
"""What numpy takes for an array of numbers."""

FloatArray = npt.NDArray[np.float64]

Z_95 = 1.959964
"""Two-sided 95 % quantile of the standard normal distribution."""

LOG_PROB_METRICS = ("mean_log_prob", "log_mean_prob", "mean_logit")
"""Names of what `log_prob_metrics` returns."""


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion.

    Args:
        successes: number of successes, in `0..n`.
        n: number of trials; with none the interval is `(nan, nan)`.
        z: half-width in standard deviations; the default gives 95 %.

    Returns:
        Lower and upper bound in `[0, 1]`.

    Raises:
        ValueError: `successes` lies outside `0..n`.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} must lie in 0..n with n={n}")
    if n == 0:
        return math.nan, math.nan
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # The bounds at p = 0 and p = 1 are exact; rounding would leave them a hair outside or inside.
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == n else min(1.0, centre + half_width)
    return low, high


def smoothed(p: float | int, n: int, pseudocount: float | int = 1) -> float:
    """Laplace-smoothed proportion `(p n + s) / (n + 2 s)`, finite on a logit axis.

    Args:
        p: observed proportion in `[0, 1]`, or NaN, which is passed on.
        n: number of trials behind it (Howe et al. use the examples offered, not those attacked).
        pseudocount: `s`, successes and failures added.

    Raises:
        ValueError: `p` lies outside `[0, 1]`, or `n` or `pseudocount` is negative.
    """
    if not (math.isnan(p) or 0 <= p <= 1):
        raise ValueError(f"p={p} is not a proportion; it must lie in [0, 1]")
    if n < 0 or pseudocount < 0:
        raise ValueError(f"n={n} and pseudocount={pseudocount} must not be negative")
    denominator = n + 2 * pseudocount
    return (p * n + pseudocount) / denominator if denominator else math.nan


def logit10(p: ArrayLike) -> FloatArray:
    """Base-10 log-odds `log10(p / (1 - p))`; -inf at 0 and +inf at 1.

    Args:
        p: proportions in `[0, 1]` (NaN is passed on), any shape.

    Raises:
        ValueError: a value lies outside `[0, 1]`.
    """
    p = np.asarray(p, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError("logit10 needs proportions in [0, 1]")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log10(p) - np.log10(1 - p))


def asr_curve(success: ArrayLike) -> FloatArray:
    """Instantaneous attack success rate after each attack iteration.

    The rate at iteration `k` looks at the text of iteration `k` alone, so the curve may fall.

    Args:
        success: bool `[B, K]`; whether example `b` fools the victim after iteration `k + 1`.

    Returns:
        float64 `[K + 1]`; index 0 is the clean text, 0 by definition. NaN after that if `B` is 0.

    Raises:
        ValueError: `success` does not have two axes.
    """
    success = _success_matrix(success)
    num_examples, num_iterations = success.shape
    curve = np.zeros(num_iterations + 1)
    curve[1:] = success.sum(axis=0) / num_examples if num_examples else math.nan
    return curve


def first_success_curve(success: ArrayLike) -> FloatArray:
    """Cumulative attack success rate: examples fooled at this iteration or before. Never falls.

    Args:
        success: bool `[B, K]`, as in `asr_curve`.

    Returns:
        float64 `[K + 1]`, index 0 is 0.

    Raises:
        ValueError: `success` does not have two axes.
    """
    return asr_curve(np.logical_or.accumulate(_success_matrix(success), axis=1))


def iterations_for_success(curve: ArrayLike) -> list[int | None]:
    """First iteration at which the rate reaches 0, 10, ..., 100 %.

    Args:
        curve: `[K + 1]` rates, index = iteration (see `asr_curve`).

    Returns:
        Eleven entries; None where the rate is never reached. The first entry is 0.
    """
    rates = np.asarray(curve, dtype=np.float64)
    firsts: list[int | None] = [0]
    for decile in range(1, 11):
        # decile / 10 and count / n are the same double when they are the same fraction.
        reached = np.flatnonzero(rates >= decile / 10)
        firsts.append(int(reached[0]) if reached.size else None)
    return firsts


def average_initial_breach(
    first_success_iterations: Sequence[int | float | None], proportion: float | int
) -> float:
    """Mean first successful iteration over the most easily broken examples.

    Args:
        first_success_iterations: one entry an example, 1-based; None if it was never broken.
        proportion: share of the examples to average over; at least one example is used.

    Returns:
        The mean over the lowest `max(1, floor(proportion n))` entries; infinite if one of them was
        never broken, NaN without examples.

    Raises:
        ValueError: `proportion` lies outside `[0, 1]`.
    """
    if not 0 <= proportion <= 1:
        raise ValueError(f"proportion={proportion} must lie in [0, 1]")
    iterations = sorted(math.inf if i is None else float(i) for i in first_success_iterations)
    # The small term undoes products such as 100 * 0.29 = 28.999999999999996.
    count = max(1, math.floor(proportion * len(iterations) + 1e-9))
    return sum(iterations[:count]) / count if iterations else math.nan


def first_crossing(
    curve: ArrayLike,
    target: float | int,
    iterations: ArrayLike | None = None,
) -> float | None:
    """Iteration at which a success curve first reaches a target, linearly interpolated.

    Curves need not be monotone; only the first crossing counts. The grid may be coarse, but a
    crossing before its first point is then a straight-line guess from (0, 0).

    Args:
        curve: rates, one a grid point.
        target: the rate to reach.
        iterations: the strictly increasing grid; by default the index `0, 1, ...`.

    Returns:
        The crossing, or None if the target is never reached. A target of 0 is reached at 0.

    Raises:
        ValueError: `target` is no rate, the grid does not fit, or the rate at iteration 0 is not 0.
    """
    rates = np.asarray(curve, dtype=np.float64)
    grid = np.arange(rates.size) if iterations is None else np.asarray(iterations)
    if not 0 <= target <= 1:
        raise ValueError(f"target={target} must lie in [0, 1]")
    if grid.shape != rates.shape or np.any(np.diff(grid) <= 0) or np.any(grid < 0):
        raise ValueError("iterations must be one increasing, non-negative number a rate")
    if rates.size and grid[0] == 0 and rates[0] != 0:
        raise ValueError(f"the rate at iteration 0 is {rates[0]}; it is 0 by definition")
    if target == 0:
        return 0.0
    previous_iteration, previous_rate = 0.0, 0.0
    for iteration, rate in zip(grid, rates, strict=True):
        if rate >= target:
            step = (target - previous_rate) / (rate - previous_rate)
            return float(previous_iteration + step * (iteration - previous_iteration))
        previous_iteration, previous_rate = iteration, rate
    return None


def log_prob_metrics(logits: ArrayLike, labels: ArrayLike) -> dict[str, FloatArray]:
    """How much probability the victim leaves to the true label, for any number of classes.

    Args:
        logits: float `[..., B, N]`; leading axes, for instance iterations, are kept.
        labels: int `[B]`, true classes.

    Returns:
        Three arrays of shape `[...]`, in nats: `mean_log_prob`, the mean log-probability of the
        true label; `log_mean_prob`, the log of its mean probability; `mean_logit`, the mean
        log-odds of the true label against all others together (for two classes: log-probability
        of the true label minus that of the other). NaN without examples.

    Raises:
        ValueError: shapes do not fit, fewer than two classes, or a label is no class.
    """
    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels)
    if logits.ndim < 2 or labels.shape != logits.shape[-2:-1]:
        raise ValueError(
            f"logits {logits.shape} and labels {labels.shape} must be [..., B, N] and [B]"
        )
    num_examples, num_classes = logits.shape[-2:]
    if num_classes < 2:
        raise ValueError(f"log-probability metrics need 2 classes or more, not {num_classes}")
    if num_examples == 0:
        nan = np.full(logits.shape[:-2], math.nan)
        return dict.fromkeys(LOG_PROB_METRICS, nan)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be integers in 0..{num_classes - 1}")

    is_true = labels[:, None] == np.arange(num_classes)
    true_logit = np.where(is_true, logits, 0.0).sum(-1)
    log_prob = true_logit - _logsumexp(logits)
    log_odds = true_logit - _logsumexp(np.where(is_true, -math.inf, logits))
    return {
        "mean_log_prob": np.asarray(log_prob.mean(-1)),
        "log_mean_prob": np.asarray(_logsumexp(log_prob) - math.log(num_examples)),
        "mean_logit": np.asarray(log_odds.mean(-1)),
    }


def _success_matrix(success: ArrayLike) -> npt.NDArray[np.bool_]:
    matrix = np.asarray(success, dtype=bool)
    if matrix.ndim != 2:
        raise ValueError(f"success has shape {matrix.shape}; it must be [examples, iterations]")
    return matrix


def _logsumexp(x: FloatArray) -> FloatArray:
    """Log of the sum of exponentials over the last axis."""
    peak = x.max(-1, keepdims=True)
    return np.asarray(np.log(np.exp(x - peak).sum(-1)) + peak[..., 0])
