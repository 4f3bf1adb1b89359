"""How fast attack success grows with attack compute: one line a model size, by three methods."""

import dataclasses

import numpy as np
import numpy.typing as npt

from robustjax.analysis import binomial
from robustjax.analysis.estimators import Fit, FloatArray, least_squares

RAW_FINITE, LAPLACE, BINOMIAL = "raw_finite", "laplace", "binomial"

METHODS = {
    RAW_FINITE: "least squares on the log-odds; rates of 0 and 1 dropped (the released analysis)",
    LAPLACE: "least squares on the log-odds of (p n + 1) / (n + 2), n the examples offered",
    BINOMIAL: "binomial likelihood, an intercept per seed and a common slope",
}


def attack_scaling(
    x: npt.ArrayLike,
    successes: npt.ArrayLike,
    trials: npt.ArrayLike,
    offered: npt.ArrayLike,
    method: str = BINOMIAL,
) -> Fit | None:
    """Slope of base-10 log-odds of success, log10(p / (1 - p)), per decade of compute.

    "raw_finite" and "laplace" pool all seeds and iterations (Howe et al. 2024, arXiv 2407.18213)
    and have the interval of least squares, which takes points for independent; they are not.

    Args:
        x: [I] log10 of attack compute at each iteration.
        successes: [S, I] examples broken.
        trials: [S, I] examples attacked; 0 where nothing was measured, which leaves the point out.
        offered: [S] examples offered.
        method: a key of `METHODS`.

    Returns:
        The fit; None if the points do not carry a line.

    Raises:
        ValueError: the shapes or the counts are at odds, or the method is unknown.
    """
    xs, k, n, m = (np.asarray(one, dtype=np.float64) for one in (x, successes, trials, offered))
    if xs.ndim != 1 or m.ndim != 1 or {k.shape, n.shape} != {(m.size, xs.size)}:
        raise ValueError(f"x {xs.shape}, successes {k.shape}, trials {n.shape}, offered {m.shape}")
    if not np.isfinite(xs).all() or (k < 0).any() or (k > n).any():
        raise ValueError("x must be finite, and successes lie in 0..trials")
    if method == BINOMIAL:
        return binomial.fit_common_slope(xs, k, n)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is none of {', '.join(METHODS)}")
    return _pooled(xs, k, n, m, method == LAPLACE)


def _pooled(
    x: FloatArray, successes: FloatArray, trials: FloatArray, offered: FloatArray, smooth: bool
) -> Fit | None:
    seed, iteration = np.nonzero(trials)
    rates = successes[seed, iteration] / trials[seed, iteration]
    if smooth:
        rates = (rates * offered[seed] + 1) / (offered[seed] + 2)
    used = (rates > 0) & (rates < 1)
    fit = least_squares(x[iteration[used]], np.log10(rates[used] / (1 - rates[used])))
    if fit is None:
        return None
    num_seeds = np.unique(seed[used]).size
    return dataclasses.replace(fit, n_dropped=int((~used).sum()), num_seeds=int(num_seeds))
