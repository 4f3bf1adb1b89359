"""Regression where some ordinates are known only to be larger than what was seen.

An attack that does not reach its target within its budget needs more compute than the budget:
dropping such points removes the costliest and pulls the slope down. Here they enter the likelihood
as lower bounds, each its own, given normal errors of one standard deviation sigma (Tobin 1958,
Econometrica 26, 24-36). In Olsen's parameters (beta / sigma, 1 / sigma) the log-likelihood is
concave (1978, Econometrica 46, 1211-1215).
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from robustjax.analysis import seed_bootstrap
from robustjax.analysis.estimators import Fit, FloatArray

MIN_UNCENSORED = 3
MAX_ITERATIONS = 100
MAX_HALVINGS = 30
TOLERANCE = 1e-10
RELATIVE_SIGMA_FLOOR = 1e-4
"""Keeps sigma off zero where the uncensored points lie on a line, relative to the spread of y."""


def censored_fit(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    is_censored: npt.ArrayLike,
    seed: npt.ArrayLike,
    interval: seed_bootstrap.Interval = seed_bootstrap.with_interval,
) -> Fit | None:
    """Line through right-censored points by maximum likelihood; interval over seeds.

    One intercept for all seeds: without censoring the line is that of least squares. `r2` is NaN.
    Draws of seeds in which the line is undefined are left out of the bootstrap.

    Args:
        x: [n] abscissae, finite.
        y: [n] ordinates; a lower bound where censored.
        is_censored: [n] whether the ordinate is a lower bound.
        seed: [n] which seed the point is of.
        interval: gives the fit its interval, from the slopes of the draws of seeds.

    Returns:
        The line, `n` with the censored points; None with fewer than three uncensored points or
        two distinct abscissae of such.

    Raises:
        ValueError: a value is not finite, or the lengths differ.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    censored, seeds = np.asarray(is_censored, dtype=bool), np.asarray(seed)
    shapes = {xs.shape, ys.shape, censored.shape, seeds.shape}
    if len(shapes) > 1 or xs.ndim != 1 or not np.isfinite([xs, ys]).all():
        raise ValueError(f"x, y, is_censored, seed must be finite and of one length: {shapes}")
    _, of_seed = np.unique(seeds, return_inverse=True)
    drawn = seed_bootstrap.resamples(int(of_seed.max()) + 1 if xs.size else 1)
    weights = np.vstack([np.ones(xs.size), drawn.counts[:, of_seed]])
    defined = _is_defined(xs, censored, weights)
    if not defined[0]:
        return None
    centre = float(xs.mean())
    scale_y, centre_y = float(np.ptp(ys[~censored])) or 1.0, float(ys.mean())
    lines = np.full((len(weights), 2), math.nan)
    lines[defined] = scale_y * _lines(
        xs - centre, (ys - centre_y) / scale_y, censored, weights[defined]
    )
    intercept, slope = map(float, lines[0])
    fit = Fit(
        slope=slope,
        intercept=centre_y + intercept - slope * centre,
        r2=math.nan,
        n=int(xs.size),
    )
    return interval(fit, lines[1:, 1], drawn)


def _is_defined(
    x: FloatArray, censored: npt.NDArray[np.bool_], weights: FloatArray
) -> npt.NDArray[np.bool_]:
    """[B] whether enough uncensored points are in each draw."""
    seen = (weights > 0) & ~censored
    low = np.where(seen, x, np.inf).min(axis=1, initial=np.inf)
    high = np.where(seen, x, -np.inf).max(axis=1, initial=-np.inf)
    return (seen.sum(axis=1) >= MIN_UNCENSORED) & (high > low)


def _lines(
    x: FloatArray, y: FloatArray, censored: npt.NDArray[np.bool_], weights: FloatArray
) -> FloatArray:
    """[B, 2] intercept and slope for each row of weights [B, n], by Newton's method."""
    # Times (intercept, slope, 1) / sigma these are the residuals in standard deviations.
    columns = np.column_stack([-np.ones_like(x), -x, y])
    products = (columns[:, :, None] * columns[:, None, :]).reshape(len(x), 9)
    num_seen = (weights * ~censored).sum(axis=1)
    ridge = RELATIVE_SIGMA_FLOOR**2 * num_seen

    def log_likelihood(parameters: FloatArray) -> FloatArray:
        residuals, precision = parameters @ columns.T, parameters[:, 2]
        each = np.where(censored, log_ndtr(-residuals), -(residuals**2) / 2)
        value = (weights * each).sum(axis=1) - ridge * precision**2 / 2
        value += num_seen * np.log(np.maximum(precision, np.finfo(float).tiny))
        return np.where(precision > 0, value, -np.inf)

    parameters = _start(columns, products, weights)
    best = log_likelihood(parameters)
    for _ in range(MAX_ITERATIONS):
        residuals, precision = parameters @ columns.T, parameters[:, 2]
        # Hazard of the normal distribution: density over upper tail.
        hazard = np.exp(-(residuals**2) / 2 - log_ndtr(-residuals)) / math.sqrt(2 * math.pi)
        gradient = -(weights * np.where(censored, hazard, residuals)) @ columns
        gradient[:, 2] += num_seen / precision - ridge * precision
        curvature = np.where(censored, hazard * (hazard - residuals), 1.0)
        hessian = ((weights * curvature) @ products).reshape(-1, 3, 3)
        hessian[:, 2, 2] += num_seen / precision**2 + ridge
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        for _ in range(MAX_HALVINGS):
            reached = log_likelihood(parameters + step)
            worse = reached < best - TOLERANCE * np.abs(best)
            if not worse.any():
                break
            step[worse] /= 2
        parameters, best = parameters + step, reached
        if (np.abs(step) <= TOLERANCE * np.abs(parameters).max(axis=1, keepdims=True)).all():
            break
    return parameters[:, :2] / parameters[:, 2:]


def _start(columns: FloatArray, products: FloatArray, weights: FloatArray) -> FloatArray:
    """[B, 3] parameters of least squares through all points as if none were censored."""
    moments = (weights @ products).reshape(-1, 3, 3)
    line = np.linalg.solve(moments[:, :2, :2], -moments[:, :2, 2:])[..., 0]
    residuals = columns[:, 2] + line @ columns[:, :2].T
    variance = (weights * residuals**2).sum(axis=1) / weights.sum(axis=1)
    precision = 1 / np.maximum(np.sqrt(variance), RELATIVE_SIGMA_FLOOR)
    return np.column_stack([line * precision[:, None], precision])
