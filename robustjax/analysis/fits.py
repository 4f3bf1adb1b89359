"""Straight-line fits of attack scaling, with how many points stand behind each."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from robustjax.analysis import tables
from robustjax.analysis.groups import Group
from robustjax.evaluation import metrics
from robustjax.evaluation.records import UNDEFENDED

ATTACK_SLOPE_DEFINITION = (
    "Ordinary least squares with intercept of log10(ASR / (1 - ASR)) on log10(cumulative "
    "algorithmic attack FLOPs per attacked example, mean over seeds), over the attack iterations "
    "1, 2, ... of all seeds. ASR is the instantaneous, unsmoothed rate; points with ASR 0 or 1 "
    "have no finite log-odds and are dropped. An attack that leaves broken examples alone has no "
    "such curve and is not fitted. stderr is the usual standard error, which takes the "
    "points for independent; they are not, as successive iterations attack the same examples."
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A fitted line; `stderr` (of the slope) and `r_squared` are NaN where they are undefined."""

    slope: float
    intercept: float
    stderr: float
    r_squared: float


def least_squares(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Ordinary least squares with intercept; None with fewer than two distinct `x`.

    Args:
        x: abscissae, finite.
        y: ordinates, finite, as many.
    """
    if len(set(x)) < 2:
        return None
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    dx, dy = xs - xs.mean(), ys - ys.mean()
    slope = float(dx @ dy / (dx @ dx))
    residual = float(((dy - slope * dx) ** 2).sum())
    total, freedom = float(dy @ dy), len(xs) - 2
    return Line(
        slope=slope,
        intercept=float(ys.mean() - slope * xs.mean()),
        stderr=math.sqrt(residual / freedom / float(dx @ dx)) if freedom else math.nan,
        r_squared=1 - residual / total if total else math.nan,
    )


def attack_slopes(group: Group) -> list[dict[str, Any]]:
    """Slope of ASR against attack compute, for each attack, defence (last round) and size.

    A size whose points do not carry a line has a `reason` in place of the line's numbers.
    """
    fitted = []
    for attack in group.attack_names:
        for trained_on in (UNDEFENDED, *group.defences):
            runs = group.last_runs(attack, trained_on)
            for point in group.sizes:
                same_size = [run for run in runs if run.victim.point == point]
                if same_size:
                    fitted.append(
                        {
                            **group.identity(point),
                            "attack": attack,
                            "trained_on": trained_on,
                            "round": tables.span([run.round for run in same_size]),
                            "metric": same_size[0].rate_names.at,
                            "num_seeds": len(same_size),
                            **_attack_line(same_size),
                        }
                    )
    return fitted


def _attack_line(runs: Sequence[tables.AttackRun]) -> dict[str, Any]:
    if any(run.is_cut_short for run in runs):
        return {
            "points_used": 0,
            "points_dropped": sum(run.metrics["iterations"] for run in runs),
            "reason": "broken examples were left alone: no curve after the first success",
        }
    x, y, dropped = [], [], 0
    runs = [run for run in runs if run.flops_per_iteration > 0]
    flops = tables.mean(run.flops_per_iteration for run in runs)
    for run in runs:
        for iteration in range(1, run.metrics["iterations"] + 1):
            odds = float(metrics.logit10(run.metrics[run.rate_names.at][str(iteration)]))
            if math.isfinite(odds):
                x.append(math.log10(iteration * flops))
                y.append(odds)
            else:
                dropped += 1
    counts = {"points_used": len(x), "points_dropped": dropped}
    line = least_squares(x, y)
    if line is None:
        return {**counts, "reason": "fewer than two distinct abscissae with a finite log-odds"}
    return {**counts, **dataclasses.asdict(line)}
