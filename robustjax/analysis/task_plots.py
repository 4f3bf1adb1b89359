"""Figures that set the tasks of one model family side by side."""

from collections.abc import Sequence

from robustjax.analysis import fits
from robustjax.analysis.drawing import Line, Panel, Point, XAxis, YAxis
from robustjax.analysis.figure import ReportFigure, lines_figure
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import attack_name
from robustjax.analysis.layout import CONDITION_STYLES

STEM = "tasks_asr_vs_size"

_GENERATIVE = ("strongreject",)
"""Tasks without classes: their victims keep another head, so their sizes are others."""


def families(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups of classification tasks by family, of those that have several."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.attacks and group.task not in _GENERATIVE:
            found.setdefault(group.model_family, []).append(group)
    return {family: same for family, same in found.items() if len(same) > 1}


def asr_against_size(groups: Sequence[Group]) -> ReportFigure:
    """Success on undefended victims against size, a panel an attack, a line a task.

    Args:
        groups: of one model family, at least one.
    """
    rows = [row for group in groups for row in fits.headline_rows(group)]
    attacks = dict.fromkeys((row["attack"], row["position"]) for row in rows)
    ticks = {
        float(group.num_params[point]): label
        for group in groups
        for point, label in group.sizes.items()
    }
    panels = [
        Panel(
            f"{attack_name(attack)}{'' if position == 'suffix' else f' ({position})'}",
            [
                _line(index, group.task, attack, position, rows)
                for index, group in enumerate(groups)
            ],
        )
        for attack, position in attacks
    ]
    iterations = sorted({(attack_name(r["attack"]), r["task"], r["iteration"]) for r in rows})
    return lines_figure(
        STEM,
        "Attack success against model size, all tasks",
        panels,
        XAxis("Parameters", "size", sorted(ticks.items())),
        YAxis("Attack success rate", "fraction"),
        "Task",
        "band",
        rows,
        "Success of each attack on undefended victims: medians over seeds of the smoothed rates, "
        "bands from the lowest to the highest seed.",
        f"Iterations: {', '.join(f'{name} on {task} {k}' for name, task, k in iterations)}.",
    )


def _line(index: int, task: str, attack: str, position: str, rows: Sequence[Row]) -> Line:
    style = CONDITION_STYLES[index % len(CONDITION_STYLES)]
    points = [
        Point(float(row["num_params"]), row["median"], row["min"], row["max"])
        for row in rows
        if (row["task"], row["attack"], row["position"]) == (task, attack, position)
    ]
    return Line(task, *style, points)
