"""Straight lines with intervals: least squares, the trend over sizes, and plain means.

Intervals are two-sided, at 95 %. What is fitted to seeds is in `attack_scaling` and `censored`.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from scipy import stats

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
OLS = "OLS 95 %"
MIN_SIZES = 3


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted line; where a line cannot be fitted there is None in its place.

    Attributes:
        slope: in units of the ordinate per unit of the abscissa.
        intercept: ordinate at abscissa 0.
        r2: share of the variance explained, as the estimator defines it; NaN where undefined.
        n: points used.
        n_dropped: points left out because the estimator cannot use them.
        ci_low: lower end of the 95 % interval of the slope; NaN without an interval.
        ci_high: upper end.
        interval: what the interval is; empty without one.
        num_seeds: seeds that inform the slope; 0 if the points are not told apart by seed.
    """

    slope: float
    intercept: float
    r2: float
    n: int
    n_dropped: int = 0
    ci_low: float = math.nan
    ci_high: float = math.nan
    interval: str = ""
    num_seeds: int = 0


@dataclasses.dataclass(frozen=True)
class SizeTrend:
    """Trend of a slope over sizes.

    Attributes:
        fit: line of the slopes on log10(parameters).
        loso_low: smallest slope of that line when one size is left out.
        loso_high: largest.
        most_influential: index of the size without which the slope changes most.
    """

    fit: Fit
    loso_low: float
    loso_high: float
    most_influential: int


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean with Student's 95 % interval, which is NaN with fewer than two values."""

    mean: float
    ci_low: float
    ci_high: float


def t_quantile(degrees_of_freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees_of_freedom))


def least_squares(x: npt.ArrayLike, y: npt.ArrayLike) -> Fit | None:
    """Ordinary least squares with intercept and the classical interval, `t` with n - 2 degrees.

    The interval takes the points for independent. With two points there is none. `r2` is NaN if
    all `y` are equal.

    Args:
        x: [n] abscissae, finite.
        y: [n] ordinates, finite.

    Returns:
        The line, or None with fewer than two distinct `x`.

    Raises:
        ValueError: a value is not finite, or the lengths differ.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if xs.shape != ys.shape or xs.ndim != 1 or not np.isfinite([xs, ys]).all():
        raise ValueError(f"x {xs.shape} and y {ys.shape} must be finite and of one length")
    if np.unique(xs).size < 2:
        return None
    dx, dy, n = xs - xs.mean(), ys - ys.mean(), int(xs.size)
    slope = float(dx @ dy / (dx @ dx))
    residual = float(((dy - slope * dx) ** 2).sum())
    fit = Fit(
        slope=slope,
        intercept=float(ys.mean() - slope * xs.mean()),
        r2=1 - residual / float(dy @ dy) if np.ptp(ys) else math.nan,
        n=n,
    )
    if n == 2:
        return fit
    half_width = t_quantile(n - 2) * math.sqrt(residual / (n - 2) / float(dx @ dx))
    return dataclasses.replace(
        fit, ci_low=slope - half_width, ci_high=slope + half_width, interval=OLS
    )


def size_trend(log10_params: npt.ArrayLike, slopes: npt.ArrayLike) -> SizeTrend | None:
    """Least squares of slopes on size, and how much any one size decides it.

    Args:
        log10_params: [n] log10 of parameters, one a size.
        slopes: [n] slope of that size.

    Returns:
        The trend, or None with fewer than three distinct sizes.

    Raises:
        ValueError: a value is not finite, or the lengths differ.
    """
    x, y = np.asarray(log10_params, dtype=np.float64), np.asarray(slopes, dtype=np.float64)
    fit = least_squares(x, y)
    if fit is None or np.unique(x).size < MIN_SIZES:
        return None
    without = [least_squares(np.delete(x, i), np.delete(y, i)) for i in range(x.size)]
    left_out = np.array([line.slope for line in without if line is not None])
    return SizeTrend(
        fit=fit,
        loso_low=float(left_out.min()),
        loso_high=float(left_out.max()),
        most_influential=int(np.abs(left_out - fit.slope).argmax()),
    )


def mean_over(values: npt.ArrayLike) -> Mean:
    """Mean and Student's 95 % interval.

    Args:
        values: [n] finite values; of none, all is NaN, and of one, the interval.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.size < 2:
        return Mean(float(given[0]) if given.size else math.nan, math.nan, math.nan)
    mean = float(given.mean())
    half_width = t_quantile(given.size - 1) * float(given.std(ddof=1)) / math.sqrt(given.size)
    return Mean(mean, mean - half_width, mean + half_width)
