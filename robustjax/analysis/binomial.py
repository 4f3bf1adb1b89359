"""Binomial likelihood of attack success with a logistic link, so that rates of 0 and 1 count.

Each seed s has its own intercept, all share the slope b: odds of success at iteration i are
10 ** (a_s + b x_i). To each seed's log-likelihood half the logarithm of the determinant of its
Fisher information is added, which is Jeffreys' prior: it removes the leading bias and keeps the
slope finite where the data are separated, as where only the last iteration has successes (Firth
1993, Biometrika 80, 27-38; Heinze & Schemper 2002, Statistics in Medicine 21, 2409-2419).

A seed that never or always succeeds says nothing about the slope and is left out. Slopes are sought
within +-20 decades of odds per decade of x; a slope at that bound is a step, and no fit.

With a_s profiled out, each seed's score is a function of b alone, and the score of a draw of seeds
is a weighted sum of them. So the bootstrap needs no fit for each draw: its root lies between the
seeds' own roots, and the scores are tabulated there once for all draws.
"""

import math

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import expit, logit

from robustjax.analysis import seed_bootstrap
from robustjax.analysis.estimators import Fit, FloatArray

LN10 = math.log(10)
MAX_STEP = 2.0
MAX_SLOPE = 20.0
MAX_ITERATIONS = 100
MAX_HALVINGS = 30
TOLERANCE = 1e-10
PROFILE_TOLERANCE = 1e-4
TINY = 1e-100
NODES_A_SIDE = 6
MIN_GAP = 1e-6
REFINEMENT = 16


def fit_common_slope(
    x: FloatArray,
    successes: FloatArray,
    trials: FloatArray,
    interval: seed_bootstrap.Interval = seed_bootstrap.with_interval,
) -> Fit | None:
    """Fit base-10 log-odds of success with one slope and an intercept per seed.

    The interval is the bootstrap's over the seeds that inform the slope. `r2` is the squared
    correlation of observed and fitted rates. `n_dropped` counts the points of seeds that say
    nothing about the slope, and the intercept is the mean of the others'.

    Args:
        x: [I] abscissa of each iteration, log10.
        successes: [S, I] examples broken.
        trials: [S, I] examples attacked; 0 where nothing was measured.
        interval: gives the fit its interval, from the slopes of the draws of seeds.

    Returns:
        The fit, or None if no seed informs the slope or the slope is at its bound.
    """
    measured = trials > 0
    informs = np.array(
        [
            0 < k.sum() < n.sum() and np.unique(x[known]).size > 1
            for k, n, known in zip(successes, trials, measured, strict=True)
        ],
        dtype=bool,
    )
    if not informs.any():
        return None
    k, n, known = successes[informs], trials[informs], measured[informs]
    centre = float(np.average(x, weights=known.sum(axis=0)))
    seeds = _Seeds(x - centre, k, n)
    a, b = seeds.maximise(shared=True)
    slope = float(b[0])
    if abs(slope) >= MAX_SLOPE * LN10:
        return None
    fitted = expit(a[:, None] + slope * seeds.x)[known]
    fit = Fit(
        slope=slope / LN10,
        intercept=(float(a.mean()) - slope * centre) / LN10,
        r2=_squared_correlation(k[known] / n[known], fitted),
        n=int(known.sum()),
        n_dropped=int(measured[~informs].sum()),
    )
    drawn = seed_bootstrap.resamples(len(k))
    return interval(fit, _slopes(seeds, slope, drawn.counts) / LN10, drawn)


class _Seeds:
    """Penalised scores of each seed in natural log-odds; leading axes broadcast over seeds."""

    def __init__(self, x: FloatArray, k: FloatArray, n: FloatArray) -> None:
        self.x, self.k, self.n = x, k, n
        self.powers = np.column_stack([np.ones_like(x), x])

    def scores(self, a: FloatArray, b: FloatArray) -> tuple[FloatArray, ...]:
        """Score of the intercept, of the slope with the intercept profiled out, and information.

        Args:
            a: [S] or [S, G] intercepts.
            b: as many slopes.

        Returns:
            Score of `a`; score of `b` at the best `a`, to first order; information about `a`;
            mean of x as the information weights it; information about `b`. Shapes as `a`.
        """
        k, n = (self.k, self.n) if a.ndim == 1 else (self.k[:, None], self.n[:, None])
        p = expit(a[..., None] + b[..., None] * self.x)
        expected = n * p
        information = expected * np.maximum(1 - p, TINY)
        about_a, first = np.moveaxis(information @ self.powers, -1, 0)
        mean_x = first / about_a
        squares = (self.x - mean_x[..., None]) ** 2
        about_b = np.einsum("...i,...i->...", information, squares)
        # Half the log determinant is (log about_a + log about_b) / 2; this is its derivative.
        penalty = squares / about_b[..., None] + 1 / about_a[..., None]
        penalty *= (0.5 - p) * information
        score_a, score_b = np.moveaxis((k - expected + penalty) @ self.powers, -1, 0)
        return score_a, score_b - mean_x * score_a, about_a, mean_x, about_b

    def objective(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """[S] penalised log-likelihood of each seed."""
        odds = a[:, None] + b[:, None] * self.x
        likelihood = (self.k * odds - self.n * np.logaddexp(0, odds)).sum(axis=1)
        _, _, about_a, _, about_b = self.scores(a, b)
        return likelihood + (np.log(about_a) + np.log(about_b)) / 2

    def maximise(self, shared: bool) -> tuple[FloatArray, FloatArray]:
        """Fisher scoring: [S] intercepts and [S] slopes, the latter all equal if shared."""
        a, b = logit(self.k.sum(axis=1) / self.n.sum(axis=1)), np.zeros(len(self.k))
        best = _together(self.objective(a, b), shared)
        for _ in range(MAX_ITERATIONS):
            score_a, score_b, about_a, mean_x, about_b = self.scores(a, b)
            step_b = _limited(_together(score_b, shared) / _together(about_b, shared))
            step_b = np.clip(b + step_b, -MAX_SLOPE * LN10, MAX_SLOPE * LN10) - b
            step_a = _limited(score_a / about_a) - mean_x * step_b
            for _ in range(MAX_HALVINGS):
                reached = _together(self.objective(a + step_a, b + step_b), shared)
                worse = reached < best - TOLERANCE * np.abs(best)
                if not worse.any():
                    break
                step_a[worse] /= 2
                step_b[worse] /= 2
            a, b, best = a + step_a, b + step_b, reached
            if max(np.abs(step_a).max(), np.abs(step_b).max()) < TOLERANCE:
                break
        return a, b

    def profile(self, b: FloatArray, a: FloatArray) -> FloatArray:
        """[S, G] score of each slope in `b` [G], intercepts at their best; `a` starts them."""
        slopes = np.broadcast_to(b, a.shape)
        for _ in range(MAX_ITERATIONS):
            score_a, score_b, about_a, _, _ = self.scores(a, slopes)
            step = _limited(score_a / about_a)
            if np.abs(step).max() < PROFILE_TOLERANCE:
                break
            a = a + step
        return score_b


def _limited(step: FloatArray) -> FloatArray:
    return np.clip(step, -MAX_STEP, MAX_STEP)


def _together(values: FloatArray, shared: bool) -> FloatArray:
    """[S] the values, or in each place their sum."""
    return np.full_like(values, values.sum()) if shared else values


def _slopes(seeds: _Seeds, slope: float, counts: FloatArray) -> FloatArray:
    """[B] common slope of each draw of seeds, by interpolation of the seeds' scores.

    Nodes span the seeds' own slopes and are densest around the slope of all seeds.
    """
    a, own = seeds.maximise(shared=False)
    if np.ptp(own) < TOLERANCE:
        return np.full(len(counts), slope)
    out = np.linspace(0, 1, NODES_A_SIDE + 1) ** 2
    low, high = own.min(), own.max()
    nodes = np.concatenate([slope + (low - slope) * out, slope + (high - slope) * out])
    nodes = np.unique(np.clip(nodes, low, high))
    nodes = nodes[np.append(True, np.diff(nodes) > MIN_GAP * (high - low))]
    mean_x = seeds.scores(a, own)[3]
    table = seeds.profile(nodes, a[:, None] - (nodes - own[:, None]) * mean_x[:, None])
    at = np.arange((nodes.size - 1) * REFINEMENT + 1) / REFINEMENT
    fine = np.interp(at, np.arange(nodes.size), nodes)
    scores = counts @ PchipInterpolator(nodes, table, axis=1)(fine)
    # A seed with very few successes can have several roots: the highest maximum counts.
    steps = np.diff(fine) * (scores[:, 1:] + scores[:, :-1]) / 2
    top = np.pad(steps.cumsum(axis=1), ((0, 0), (1, 0))).argmax(axis=1)
    rows = np.arange(len(counts))
    start = np.clip(np.where(scores[rows, top] > 0, top, top - 1), 0, fine.size - 2)
    above, below = scores[rows, start], scores[rows, start + 1]
    share = np.divide(above, above - below, out=np.zeros_like(above), where=above > below)
    return fine[start] + np.clip(share, 0, 1) * (fine[start + 1] - fine[start])


def _squared_correlation(observed: FloatArray, fitted: FloatArray) -> float:
    if not (np.ptp(observed) and np.ptp(fitted)):
        return math.nan
    return float(np.corrcoef(observed, fitted)[0, 1]) ** 2
