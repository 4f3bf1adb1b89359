"""Which round of adversarial training stands for a size: none, a budget of compute, or the last.

A budget is a fraction of pretraining. Howe et al. 2024 (arXiv 2407.18213) walk the sizes upwards
and take the round whose cost is nearest, at least 1 and never more than that of the size before. A
size that was not evaluated after that round has no place in the comparison; `gaps` says which.
"""

import math
from collections.abc import Sequence

from robustjax.analysis.groups import Group
from robustjax.analysis.stages import AttackRun
from robustjax.analysis.tables import by_point
from robustjax.evaluation.records import UNDEFENDED

BUDGETS = (1e-4, 1e-3, 5e-3)
LAST = "last"


def budget_rounds(runs: Sequence[AttackRun], budget: float) -> dict[str, int]:
    """The round of each size whose defence compute is nearest to a fraction of pretraining.

    Args:
        runs: of one attack on victims of one defence; their rounds are those to choose from. Sizes
            whose pretraining or training cost is not known are left out.
        budget: the fraction.

    Returns:
        Rounds by scaling point in order of size. A round may be one of a smaller size that this
        size was not evaluated after.
    """
    costs: dict[tuple[int, str], dict[int, float]] = {}
    for run in runs:
        fraction = run.mean_defence_flops / run.pretrain_flops
        if not math.isnan(fraction):
            size = (run.victim.num_params, run.victim.point)
            costs.setdefault(size, {})[run.round] = fraction
    rounds: dict[str, int] = {}
    before = math.inf
    for (_, point), fractions in sorted(costs.items()):
        nearest = min(sorted(fractions), key=lambda number: abs(fractions[number] - budget))
        rounds[point] = int(min(max(1, nearest), before))
        before = rounds[point]
    return rounds


def is_met(runs: Sequence[AttackRun], budget: float) -> bool:
    """Whether any round had cost the budget to a factor of two; else nothing compares at it."""
    shares = (run.mean_defence_flops / run.pretrain_flops for run in runs)
    return any(budget / 2 <= share <= 2 * budget for share in shares)


def rounds_by_rule(
    group: Group, attack: str, trained_on: str
) -> dict[str, dict[str, Sequence[AttackRun]]]:
    """Runs of an attack by rule and scaling point; rules and points without runs are left out.

    The rules are `undefended`, or for a defence `0` (before the first round, where it was measured
    with the same attack), each budget that is met as `0.001`, and `last`, which is the last round
    of each seed.
    """
    runs = [run for run in group.runs(attack, trained_on) if not run.is_cut_short]
    if trained_on == UNDEFENDED:
        chosen = {"undefended": {point: 0 for point in group.sizes}}
    else:
        chosen = {"0": {point: 0 for point in group.sizes}}
        chosen |= {
            f"{budget:g}": budget_rounds(runs, budget) for budget in BUDGETS if is_met(runs, budget)
        }
    found: dict[str, dict[str, Sequence[AttackRun]]] = {
        rule: _at(runs, rounds) for rule, rounds in chosen.items()
    }
    if trained_on != UNDEFENDED:
        last = [run for run in group.last_runs(attack, trained_on) if not run.is_cut_short]
        found[LAST] = dict(by_point(group, last))
    kept = {
        rule: {point: same for point, same in points.items() if same}
        for rule, points in found.items()
    }
    return {rule: points for rule, points in kept.items() if points}


def gaps(group: Group) -> list[str]:
    """Sizes that a budget leaves out because they were not evaluated after its round."""
    lines = []
    for attack in group.attack_names:
        for trained_on in group.defences:
            runs = group.runs(attack, trained_on)
            if not runs:
                continue
            for budget in BUDGETS:
                if not is_met(runs, budget):
                    continue
                rounds = budget_rounds(runs, budget)
                missing = [
                    f"{group.sizes[point]} (round {number})"
                    for point, number in rounds.items()
                    if not _at(runs, {point: number})[point]
                ]
                if missing:
                    lines.append(
                        f"{attack} against training on {trained_on} at {budget:g} of pretraining "
                        f"({group.model_family}, {group.task}): not evaluated: {', '.join(missing)}"
                    )
    return lines


def _at(runs: Sequence[AttackRun], rounds: dict[str, int]) -> dict[str, Sequence[AttackRun]]:
    return {
        point: [run for run in runs if (run.victim.point, run.round) == (point, number)]
        for point, number in rounds.items()
    }
