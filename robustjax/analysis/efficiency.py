"""How much adversarial training a size needs until an attack rarely works any more."""

import math
import statistics

from robustjax.analysis.groups import Group, Row
from robustjax.analysis.tables import by_point, mean
from robustjax.evaluation import metrics

TARGETS = (0.5, 0.25, 0.1, 0.05)
"""Attack success rates at the last iteration."""


def efficiency_rows(group: Group) -> list[Row]:
    """The first evaluated round whose median smoothed success is at most a target, and its cost.

    A row a size, attack, defence and target. A size that no evaluated round brings that far has
    empty columns. Success may rise again later: look at every round too.
    """
    rows: list[Row] = []
    for attack in group.attack_names:
        for trained_on in group.defences:
            hardened = [run for run in group.runs(attack, trained_on) if run.round > 0]
            for point, runs in by_point(group, [run for run in hardened if run.num_attacked]):
                by_round = {
                    number: [run for run in runs if run.round == number]
                    for number in sorted({run.round for run in runs})
                }
                medians = {
                    number: statistics.median(
                        metrics.smoothed(run.curve[run.headline_iteration], run.num_examples)
                        for run in same
                    )
                    for number, same in by_round.items()
                }
                for target in TARGETS:
                    first = next((n for n, median in medians.items() if median <= target), None)
                    chosen = by_round[first] if first is not None else []
                    flops = mean(run.mean_defence_flops for run in chosen)
                    rows.append(
                        {
                            **group.identity(point),
                            "attack": attack,
                            "trained_on": trained_on,
                            "target": target,
                            "round": math.nan if first is None else first,
                            "defence_flops": flops,
                            "defence_fraction_of_pretraining": flops
                            / mean(run.pretrain_flops for run in runs),
                        }
                    )
    return rows
