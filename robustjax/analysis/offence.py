"""What an attacker must spend to reach a target against what the defender has spent.

For every victim after some rounds of adversarial training: the first iteration at which attack
success crosses a target (`metrics.first_crossing`, on raw rates), times what an iteration costs for
each example offered, the mean over seeds and rounds of the size. Against it stands the cumulative
cost of adversarial training. A slope below 1 in decades per decade means that the attacker's bill
grows more slowly than the defender's (Howe et al. 2024, arXiv 2407.18213).
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

from robustjax.analysis.censored import censored_fit
from robustjax.analysis.estimators import Fit, least_squares
from robustjax.analysis.fits import fit_columns, identity
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.stages import AttackRun
from robustjax.analysis.tables import by_point, mean
from robustjax.evaluation import metrics

TARGETS = (0.01, 0.02, 0.05, 0.10)

MEDIAN_FIT, SEED_FIT, CENSORED = "median_fit", "seed_fit", "censored"

OFFENCE_DEFENCE_DEFINITION = (
    "Decades of attack compute for a target success rate per decade of defence compute, one row a "
    "size. median_fit: least squares through the median over the seeds that reach the target, a "
    "point a round; seed_fit: through every seed that reaches it. Both leave out what never "
    "reaches the target within the iterations run, which are the costliest points, and take the "
    "mean cost over all trainings of a size and round. censored: regression in which those points "
    "count as at least the compute spent, against each victim's own defence compute; its interval "
    "is a bootstrap over seeds. n_censored are the rounds (median_fit) or victims (seed_fit, "
    "censored) that never reach the target."
)


@dataclasses.dataclass(frozen=True)
class Crossing:
    """When an attack reaches a target on one victim.

    Attributes:
        seed: of the victim.
        round: adversarial training rounds behind it.
        iterations: interpolated iteration of the crossing; NaN if there is none.
        budget: iterations run.
        defence: what its own adversarial training had cost, in the unit of the abscissa.
        mean_defence: the same over all trainings of the size and round.
    """

    seed: int
    round: int
    iterations: float
    budget: int
    defence: float
    mean_defence: float


@dataclasses.dataclass(frozen=True)
class Contest:
    """Attack against defence at one size and target.

    Attributes:
        attack: label of the attack.
        trained_on: the training attack.
        point: scaling point.
        target: success rate to reach.
        x_kind: unit of the abscissa: "flops_fraction" of pretraining, or "flops".
        y_kind: the same of the ordinate, or "iteration" where no FLOPs of the attack are known.
        unit: what an iteration costs an offered example, in the unit of the ordinate.
        resolution: the success rate of a single example, the largest over the runs.
        is_coarse: whether the first iteration measured is so late that crossings before it are
            straight lines from 0.
        crossings: victims after at least one round, in order of round and seed.
    """

    attack: str
    trained_on: str
    point: str
    target: float
    x_kind: str
    y_kind: str
    unit: float
    resolution: float
    is_coarse: bool
    crossings: Sequence[Crossing]


def contests(group: Group) -> list[Contest]:
    """Every attack on every defence, size and target; those without a costed round are left out."""
    return [
        contest
        for attack in group.attack_names
        for trained_on in group.defences
        for point, runs in by_point(group, group.runs(attack, trained_on))
        for contest in _contests_of_size(point, runs)
    ]


def _contests_of_size(point: str, runs: Sequence[AttackRun]) -> list[Contest]:
    runs = [run for run in runs if run.num_attacked and not run.is_cut_short]
    costed = [run for run in runs if run.round > 0 and run.mean_defence_flops > 0]
    if not costed:
        return []
    flops = mean(run.flops_per_iteration / run.num_examples for run in runs)
    pretrain = mean(run.pretrain_flops for run in runs)
    x_kind, scale = ("flops", 1.0) if math.isnan(pretrain) else ("flops_fraction", pretrain)
    y_kind, unit = ("iteration", 1.0) if math.isnan(flops) else (x_kind, flops / scale)
    return [
        Contest(
            attack=costed[0].attack,
            trained_on=costed[0].trained_on,
            point=point,
            target=target,
            x_kind=x_kind,
            y_kind=y_kind,
            unit=unit,
            resolution=max(1 / run.num_attacked for run in costed),
            is_coarse=any(min(run.curve) > 1 for run in costed),
            crossings=tuple(
                sorted(
                    (_crossing(run, target, scale) for run in costed),
                    key=lambda crossing: (crossing.round, crossing.seed),
                )
            ),
        )
        for target in TARGETS
    ]


def _crossing(run: AttackRun, target: float, scale: float) -> Crossing:
    iterations = sorted(run.curve)
    rates = [0.0, *(run.curve[iteration] for iteration in iterations)]
    found = metrics.first_crossing(rates, target, [0, *iterations])
    return Crossing(
        seed=run.victim.seed,
        round=run.round,
        iterations=math.nan if found is None else found,
        budget=iterations[-1],
        defence=run.defence_flops / scale,
        mean_defence=run.mean_defence_flops / scale,
    )


def offence_rows(group: Group) -> list[Row]:
    """A row a size, target and round: median and range over the seeds that reach the target.

    Iterations times `cost_of_iteration` are in the unit `y`, for each example offered.
    """
    rows: list[Row] = []
    for contest in contests(group):
        for number, crossings in _by_round(contest):
            reached = [c.iterations for c in crossings if c.iterations > 0]
            rows.append(
                {
                    **group.identity(contest.point),
                    "attack": contest.attack,
                    "trained_on": contest.trained_on,
                    "target": contest.target,
                    "resolution": contest.resolution,
                    "round": number,
                    "x": contest.x_kind,
                    "defence": crossings[0].mean_defence,
                    "y": contest.y_kind,
                    "cost_of_iteration": contest.unit,
                    "iterations": statistics.median(reached) if reached else math.nan,
                    "iterations_min": min(reached, default=math.nan),
                    "iterations_max": max(reached, default=math.nan),
                    "iterations_run": max(c.budget for c in crossings),
                    "num_seeds": len(crossings),
                    "num_censored": len(crossings) - len(reached),
                    "is_coarse": contest.is_coarse,
                }
            )
    return rows


def offence_defence_rows(group: Group) -> list[Row]:
    """A row a size, target and method; sizes whose points do not carry a line have none."""
    rows: list[Row] = []
    for contest in contests(group):
        for method, (fit, num_censored) in fit_contest(contest).items():
            if fit is not None:
                rows.append(
                    {
                        **identity(group, contest.point, contest.attack, contest.trained_on),
                        "target": contest.target,
                        "x": contest.x_kind,
                        "y": contest.y_kind,
                        "method": method,
                        **fit_columns(fit),
                        "n_censored": num_censored,
                        "is_coarse": contest.is_coarse,
                    }
                )
    return rows


def fit_contest(contest: Contest) -> dict[str, tuple[Fit | None, int]]:
    """The line by each method, with the number of points that never reach the target.

    On a coarse grid there is no censored fit: nothing can be concluded from it.
    """
    reached = [c for c in contest.crossings if c.iterations > 0]
    num_censored = len(contest.crossings) - len(reached)
    by_round = _by_round(contest)
    medians = [
        (
            crossings[0].mean_defence,
            statistics.median(c.iterations for c in crossings if c.iterations > 0),
        )
        for _, crossings in by_round
        if any(c.iterations > 0 for c in crossings)
    ]
    fits: dict[str, tuple[Fit | None, int]] = {
        MEDIAN_FIT: (_log_line(medians, contest.unit), len(by_round) - len(medians)),
        SEED_FIT: (
            _log_line([(c.mean_defence, c.iterations) for c in reached], contest.unit),
            num_censored,
        ),
    }
    known = [c for c in contest.crossings if c.defence > 0]
    if known and not contest.is_coarse:
        is_censored = np.array([math.isnan(c.iterations) for c in known])
        iterations = np.where(is_censored, [c.budget for c in known], [c.iterations for c in known])
        fit = censored_fit(
            np.log10([c.defence for c in known]),
            np.log10(iterations * contest.unit),
            is_censored,
            np.array([c.seed for c in known]),
        )
        fits[CENSORED] = (fit, int(is_censored.sum()))
    return fits


def _log_line(points: Sequence[tuple[float, float]], unit: float) -> Fit | None:
    if len(points) < 2:
        return None
    x, y = np.log10(np.array(points)).T
    return least_squares(x, y + math.log10(unit))


def _by_round(contest: Contest) -> list[tuple[int, list[Crossing]]]:
    rounds: dict[int, list[Crossing]] = {}
    for crossing in contest.crossings:
        rounds.setdefault(crossing.round, []).append(crossing)
    return list(rounds.items())
