"""Straight lines through attack curves, and their trend over model sizes.

Pure functions from a group of runs to rows; every row names its position (`suffix`, `prefix`,
`infix90`), so that attacks at different places are never taken for one.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from robustjax.analysis import attack_scaling, budgets
from robustjax.analysis.estimators import Fit, size_trend
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import attack_parts
from robustjax.analysis.stages import AttackRun
from robustjax.analysis.tables import by_point, mean
from robustjax.evaluation import metrics
from robustjax.evaluation.records import UNDEFENDED

ATTACK_SCALING_DEFINITION = (
    "Base-10 log-odds of attack success per decade of attack compute, over the iterations of all "
    "seeds. Compute is that of the whole attacked set (algorithmic FLOPs an iteration, mean over "
    "seeds, times iterations): as a fraction of pretraining where that is known (flops_fraction), "
    "else absolute (flops), and iterations where no FLOPs are known (iteration). raw_finite is the "
    "released method: least squares, rates of 0 and 1 dropped. laplace smooths, (p n + 1) / "
    "(n + 2) with n the examples offered. binomial is the likelihood of the counts with an "
    "intercept per seed and a common slope; its interval is a bootstrap over seeds. The others "
    "have that of least squares, which takes successive iterations for independent; they are not."
)

Chosen = Mapping[str, Sequence[AttackRun]]
"""Runs by scaling point."""


def attack_scaling_rows(group: Group) -> list[Row]:
    """A row a size, attack, defence, round and method; sizes without a line have no row.

    Attacks that leave broken examples alone have no curve after the first success and no row.
    """
    rows: list[Row] = []
    for attack in group.attack_names:
        for trained_on in (UNDEFENDED, *group.defences):
            runs = [run for run in group.runs(attack, trained_on) if not run.is_cut_short]
            for number in sorted({run.round for run in runs}):
                same_round = [run for run in runs if run.round == number]
                for point, same in by_point(group, same_round):
                    rows += _fitted(group, point, same, number)
    return rows


def size_trend_rows(group: Group) -> list[Row]:
    """Slopes of attack scaling against size, a row an attack, defence, rule and method.

    The rule says which round of each size: that of the undefended, `0`, a budget of defence compute
    as a fraction of pretraining (see `budgets`), or `last`. With them goes how far the trend hangs
    on a single size.
    """
    rows: list[Row] = []
    for attack in group.attack_names:
        for trained_on in (UNDEFENDED, *group.defences):
            for rule, chosen in budgets.rounds_by_rule(group, attack, trained_on).items():
                for method in attack_scaling.METHODS:
                    row = _trend(group, attack, trained_on, rule, chosen, method)
                    if row:
                        rows.append(row)
    return rows


def headline_rows(group: Group) -> list[Row]:
    """Smoothed success of each attack on undefended victims: median and range over seeds.

    At few iterations of published fine-tuned models, as Howe et al. 2024 (arXiv 2407.18213) report
    them; at the last iteration of our own runs.
    """
    rows: list[Row] = []
    for attack in group.attack_names:
        attacked = [run for run in group.runs(attack, UNDEFENDED) if run.num_attacked]
        for point, runs in by_point(group, attacked):
            iteration = runs[0].headline_iteration
            rates = [
                metrics.smoothed(run.curve[iteration], run.num_examples)
                for run in runs
                if iteration in run.curve
            ]
            rows.append(
                {
                    **identity(group, point, attack, UNDEFENDED),
                    "iteration": iteration,
                    "median": statistics.median(rates),
                    "min": min(rates),
                    "max": max(rates),
                }
            )
    return rows


def identity(group: Group, point: str, attack: str, trained_on: str) -> Row:
    """Columns that all fits begin with; `point` is left out where a row is about all sizes."""
    name, position = attack_parts(attack)
    row = {
        "family": group.model_family,
        "task": group.task,
        "training_attack": None if trained_on == UNDEFENDED else trained_on,
        "attack": name,
        "position": position,
    }
    return row | ({"point": point, "num_params": group.num_params[point]} if point else {})


def fit_columns(fit: Fit) -> Row:
    """What all fits end with; null where a number does not exist."""
    return {
        "slope": fit.slope,
        "intercept": fit.intercept,
        "r2": number_or_none(fit.r2),
        "n": fit.n,
        "n_dropped": fit.n_dropped,
        "ci_low": number_or_none(fit.ci_low),
        "ci_high": number_or_none(fit.ci_high),
        "interval": fit.interval or None,
        "num_seeds": fit.num_seeds,
    }


def number_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def fit_runs(runs: Sequence[AttackRun], method: str) -> tuple[str, Fit | None]:
    """Attack scaling of the runs of one size: what its x is, and the line."""
    runs = [run for run in runs if run.num_attacked]
    if not runs:
        return "", None
    iterations = sorted({iteration for run in runs for iteration in run.curve})
    kind, unit = _unit_of_compute(runs)
    successes, trials = np.zeros((2, len(runs), len(iterations)))
    for seed, run in enumerate(runs):
        for index, iteration in enumerate(iterations):
            if iteration in run.curve:
                trials[seed, index] = run.num_attacked
                successes[seed, index] = round(run.curve[iteration] * run.num_attacked)
    x = np.log10(np.array(iterations) * unit)
    offered = [run.num_examples for run in runs]
    return kind, attack_scaling.attack_scaling(x, successes, trials, offered, method)


def _fitted(group: Group, point: str, runs: Sequence[AttackRun], number: int) -> Iterable[Row]:
    for method in attack_scaling.METHODS:
        kind, fit = fit_runs(runs, method)
        if fit is not None:
            yield {
                **identity(group, point, runs[0].attack, runs[0].trained_on),
                "round": number,
                "x": kind,
                "method": method,
                **fit_columns(fit),
            }


def _unit_of_compute(runs: Sequence[AttackRun]) -> tuple[str, float]:
    """What an iteration costs, on the best axis that is known."""
    flops = mean(run.flops_per_iteration for run in runs)
    pretrain = mean(run.pretrain_flops for run in runs)
    if math.isnan(flops):
        return "iteration", 1.0
    return ("flops", flops) if math.isnan(pretrain) else ("flops_fraction", flops / pretrain)


def _trend(
    group: Group, attack: str, trained_on: str, rule: str, chosen: Chosen, method: str
) -> dict[str, Any] | None:
    fits = {point: fit_runs(runs, method)[1] for point, runs in chosen.items()}
    slopes = {point: fit.slope for point, fit in fits.items() if fit is not None}
    sizes = [math.log10(group.num_params[point]) for point in slopes]
    trend = size_trend(sizes, list(slopes.values())) if slopes else None
    if trend is None:
        return None
    return {
        **identity(group, "", attack, trained_on),
        "round": rule,
        "method": method,
        **fit_columns(trend.fit),
        "loso_low": trend.loso_low,
        "loso_high": trend.loso_high,
        "most_influential": list(slopes)[trend.most_influential],
    }
