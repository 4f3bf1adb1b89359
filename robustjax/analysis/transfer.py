"""The transfer matrix: what each attack does to victims hardened against each other one."""

import dataclasses

from robustjax.analysis import rates
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.heatmap import Matrix
from robustjax.analysis.labels import attack_name, condition_name
from robustjax.analysis.stages import AttackRun
from robustjax.analysis.tables import asr_count, first_success, mean, span
from robustjax.evaluation.records import UNDEFENDED


def matrix_rows(group: Group) -> list[Row]:
    """One row a size, defence, round, attack and strength, over all seeds.

    A strength is a number of iterations: 1, 2, 4, ... and all of them. The rate is that of the text
    of that very iteration, as `metric` says; `first_success` is the share broken by then.
    """
    return [
        row
        for point in group.sizes
        for trained_on in (UNDEFENDED, *group.defences)
        for attack in group.attack_names
        for row in _rows_of_cell(group, point, trained_on, attack)
    ]


def _rows_of_cell(group: Group, point: str, trained_on: str, attack: str) -> list[Row]:
    runs = [run for run in group.runs(attack, trained_on) if run.victim.point == point]
    rows = []
    for number in sorted({run.round for run in runs}):
        same = [run for run in runs if run.round == number]
        for iteration in _strengths(same):
            rows.append(
                {
                    **group.identity(point),
                    "trained_on": trained_on,
                    "round": number,
                    "attack": attack,
                    "position": same[0].position,
                    "iteration": iteration,
                    "metric": same[0].rate_names.at,
                    "attack_flops": iteration * mean(run.flops_per_example for run in same),
                    "defence_flops": mean(run.defence_flops for run in same),
                    "first_success": _first_success(same, iteration),
                    **dataclasses.asdict(
                        rates.combine([asr_count(run, iteration) for run in same])
                    ),
                }
            )
    return rows


def _strengths(runs: list[AttackRun]) -> list[int]:
    """Powers of two and the last, of the iterations that all runs measured."""
    measured = sorted(set.intersection(*(set(run.curve) for run in runs)))
    return [k for k in measured if k & (k - 1) == 0 or k == measured[-1]]


def _first_success(runs: list[AttackRun], iteration: int) -> float:
    """Median over seeds, as `value` is."""
    return rates.median([first_success(run, iteration) for run in runs])


def matrices(group: Group, rows: list[Row]) -> list[Matrix]:
    """A matrix a size, after the last round and iteration; columns are attacks."""
    conditions = (UNDEFENDED, *group.defences)
    last = {
        (row["point"], row["trained_on"], row["attack"]): row for row in rows
    }  # rounds and iterations grow within a cell
    return [
        Matrix(
            size,
            tuple(condition_name(condition) for condition in conditions),
            tuple(attack_name(attack) for attack in group.attack_names),
            tuple(
                tuple(
                    last[point, condition, attack]["value"]
                    if (point, condition, attack) in last
                    else None
                    for attack in group.attack_names
                )
                for condition in conditions
            ),
        )
        for point, size in group.sizes.items()
    ]


def last_rounds(rows: list[Row]) -> int | str:
    """The rounds that the figure shows, `low-high` if they differ."""
    last: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["point"], row["trained_on"]
        last[key] = max(row["round"], last.get(key, 0))
    return span([number for number in last.values() if number] or [0])
