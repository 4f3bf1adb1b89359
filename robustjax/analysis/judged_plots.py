"""What judges say of the answers that language models generate, against size."""

import dataclasses
from collections.abc import Sequence

from robustjax.analysis import captions, layout, rates
from robustjax.analysis.drawing import Line, Panel, YAxis
from robustjax.analysis.figure import ReportFigure, lines_figure
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import attack_name
from robustjax.analysis.stages import AttackRun
from robustjax.analysis.tables import by_point
from robustjax.evaluation.records import UNDEFENDED

STEM = "judged_vs_size"

_MEASURES = {
    "judged success": ("num_judged_success", "num_attacked"),
    "goal text reached": ("num_broken", "num_attacked"),
    "clean prompts refused": ("num_refused_before", "num_judged_before"),
}
"""What is counted, of how many; names of metrics."""


def judged_figures(group: Group) -> list[ReportFigure]:
    """A figure if any answers were judged."""
    rows = judged_rows(group)
    return [_figure(group, rows)] if rows else []


def judged_rows(group: Group) -> list[Row]:
    """Undefended victims: a row an attack, judge, size and thing counted."""
    rows: list[Row] = []
    for attack in group.attack_names:
        runs = [run for run in group.runs(attack, UNDEFENDED) if "judge" in run.metrics]
        for judge in sorted({run.metrics["judge"] for run in runs}):
            mine = [run for run in runs if run.metrics["judge"] == judge]
            for point, same in by_point(group, mine):
                rows += [
                    group.identity(point)
                    | {"attack": attack, "judge": judge, "measure": measure}
                    | {"num_unparsable": sum(run.metrics["num_unparsable"] for run in same)}
                    | dataclasses.asdict(_rate(same, *names))
                    for measure, names in _MEASURES.items()
                ]
    return rows


def _rate(runs: Sequence[AttackRun], successes: str, trials: str) -> rates.Rate:
    return rates.combine(
        [rates.Count(run.metrics[successes], run.metrics[trials], run.num_examples) for run in runs]
    )


def _figure(group: Group, rows: list[Row]) -> ReportFigure:
    panels = [
        Panel(f"{attack_name(attack)} attack,\njudge {judge}", _lines(rows, attack, judge))
        for attack, judge in dict.fromkeys((row["attack"], row["judge"]) for row in rows)
    ]
    unread = sum(row["num_unparsable"] for row in rows if row["measure"] == "judged success")
    return lines_figure(
        STEM,
        "What the judge says of answers, against model size",
        panels,
        layout.size_axis(group),
        YAxis("Share", "fraction"),
        "",
        "bars",
        rows,
        "Judged success: share of the attacked examples to whose final text the victim answers as "
        "the attacker wants, in the eyes of the judge. Goal text reached: share of them whose "
        "likeliest answer begins with the text that the attack aims for. Clean prompts refused: "
        "share of the prompts that the victim refuses without an attack; only those are attacked.",
        f"{unread} verdicts could not be read; they count as no success.",
        captions.sample([row for row in rows if row["measure"] == "judged success"], "attacked"),
    )


def _lines(rows: Sequence[Row], attack: str, judge: str) -> list[Line]:
    return [
        Line(
            measure,
            *style,
            layout.points(
                [
                    row
                    for row in rows
                    if (row["attack"], row["judge"], row["measure"]) == (attack, judge, measure)
                ],
                "num_params",
                layout.plain,
            ),
        )
        for measure, style in zip(_MEASURES, layout.CONDITION_STYLES, strict=False)
    ]
