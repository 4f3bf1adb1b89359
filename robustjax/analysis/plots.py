"""The figures of a report: which rows become which lines, and what the caption says."""

from collections.abc import Sequence

from robustjax.analysis import captions, judged_plots, layout, scaling_plots, tables, transfer
from robustjax.analysis.drawing import Line, Panel, XAxis, YAxis
from robustjax.analysis.figure import MatrixDrawing, ReportFigure, lines_figure
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import attack_file_name, attack_name, condition_name
from robustjax.evaluation.records import UNDEFENDED, rate_names


def all_figures(group: Group) -> list[ReportFigure]:
    """Every figure, in the order of the report; one without any point has no drawing."""
    return [
        clean_accuracy(group),
        asr_against_size(group),
        *judged_plots.judged_figures(group),
        *(
            figure
            for attack in group.attack_names
            for figure in asr_against_attack_compute(group, attack)
        ),
        scaling_plots.slope_against_size(group),
        asr_against_round(group),
        scaling_plots.asr_after_rounds(group),
        asr_against_defence_compute(group),
        accuracy_against_round(group),
        *scaling_plots.asr_at_all_budgets(group),
        scaling_plots.offence_against_defence(group),
        transfer_across_attacks(group),
        transfer_across_iterations(group),
        transfer_matrix(group),
    ]


def clean_accuracy(group: Group) -> ReportFigure:
    """Clean accuracy against size."""
    rows = tables.clean_accuracy(group)
    conditions = (UNDEFENDED, *group.defences)
    lines = layout.condition_lines(group, rows, layout.plain)
    sources = " and ".join(sorted({row["source"] for row in rows}))
    series = [(condition_name(c), {"trained_on": c}) for c in conditions]
    return lines_figure(
        "clean_accuracy",
        "Clean accuracy against model size",
        [Panel("", lines)],
        layout.size_axis(group),
        YAxis("Accuracy on clean text", "fraction", from_zero=False),
        "Victim",
        "bars",
        rows,
        "Accuracy on clean text, undefended and after the last round of adversarial training. "
        f"Source: {sources}. The axis does not start at 0.",
        captions.rounds(rows),
        captions.sample(rows, "offered"),
        captions.missing(group, rows, series),
    )


def asr_against_size(group: Group) -> ReportFigure:
    """ASR against size, a panel an attack."""
    rows = tables.asr_against_size(group)
    return lines_figure(
        "asr_vs_size",
        "Attack success against model size",
        layout.attack_panels(group, rows, group.attack_names, layout.plain),
        layout.size_axis(group),
        YAxis("Attack success rate", "fraction"),
        "Victim",
        "bars",
        rows,
        "Attack success rate (ASR) of the final text, undefended and after the last round of "
        "adversarial training.",
        captions.iterations(rows),
        captions.rounds(rows),
        captions.sample(rows, "attacked"),
        _missing(group, rows, group.attack_names),
    )


def asr_against_attack_compute(group: Group, attack: str) -> list[ReportFigure]:
    """ASR against attack compute, a panel a defence, a line a size.

    Victims of whose attacks no FLOPs are known have a figure of their own, against iterations.
    """
    all_rows = tables.asr_against_attack_compute(group, attack)
    of_axis: dict[str, list[Row]] = {}
    for condition in (UNDEFENDED, *group.defences):
        mine = [row for row in all_rows if row["trained_on"] == condition]
        if mine:
            of_axis.setdefault(layout.compute_column(mine), []).extend(mine)
    return [
        _attack_compute_figure(group, attack, rows, column, len(of_axis) > 1)
        for column, rows in (of_axis or {"iteration": []}).items()
    ]


def _attack_compute_figure(
    group: Group, attack: str, rows: list[Row], column: str, is_one_of_many: bool
) -> ReportFigure:
    is_best = any(row["metric"] == rate_names("keep_best").at for row in rows)
    shown = "the best text so far" if is_best else "that iteration's text"
    present = {row["trained_on"] for row in rows}
    conditions = [c for c in (UNDEFENDED, *group.defences) if c in present]
    panels = [
        Panel(
            condition_name(condition).capitalize()
            if condition == UNDEFENDED
            else f"After training on {attack_name(condition)}",
            layout.size_lines(group, [r for r in rows if r["trained_on"] == condition], column),
        )
        for condition in conditions
    ]
    in_iterations = is_one_of_many and column == "iteration"
    return lines_figure(
        f"asr_vs_attack_compute_{attack_file_name(attack)}"
        + ("_in_iterations" if in_iterations else ""),
        f"{attack_name(attack)}: attack success against attack compute",
        panels,
        layout.compute_axis(column),
        YAxis("Attack success rate", "logit"),
        "Parameters",
        "band",
        rows,
        f"ASR after each {attack_name(attack)} iteration ({shown} alone) against the compute spent "
        "so far, taken as equal for all iterations.",
        "No FLOPs of these attacks are known." if column == "iteration" and rows else "",
        captions.SMOOTHING,
        captions.rounds(rows),
        captions.sample(rows, "attacked"),
        _missing(group, rows, [attack], conditions),
    )


def asr_against_round(group: Group) -> ReportFigure:
    """ASR against adversarial training round, a panel an attack and defence."""
    rows = tables.asr_against_round(group)
    return lines_figure(
        "asr_vs_round",
        "Attack success over adversarial training rounds",
        layout.crossed_panels(group, rows, "round"),
        XAxis("Adversarial training round (0 is undefended)", "round"),
        YAxis("Attack success rate", "logit"),
        "Parameters",
        "band",
        rows,
        "ASR of the final text after each evaluated round of adversarial training.",
        captions.SMOOTHING,
        captions.iterations(rows),
        captions.sample(rows, "attacked"),
        _missing(group, [r for r in rows if r["round"] != 0], group.attack_names, group.defences),
        columns=max(1, len(group.defences)),
    )


def accuracy_against_round(group: Group) -> ReportFigure:
    """Accuracy on clean texts over the rounds: what a defence costs where nobody attacks."""
    rows = tables.accuracy_against_round(group)
    return lines_figure(
        "accuracy_vs_round",
        "Clean accuracy over adversarial training rounds",
        layout.crossed_panels(group, rows, "round", layout.plain),
        XAxis("Adversarial training round (0 is undefended)", "round"),
        YAxis("Accuracy on clean text", "fraction", from_zero=False),
        "Parameters",
        "band",
        rows,
        "Accuracy on the clean texts offered to an attack after each evaluated round. The CSV also "
        "has the accuracy under attack, as a share of the texts offered. The axis does not start "
        "at 0.",
        captions.sample(rows, "offered"),
        columns=max(1, len(group.defences)),
    )


def asr_against_defence_compute(group: Group) -> ReportFigure:
    """ASR against cumulative defence compute, a panel an attack and defence."""
    rows = tables.asr_against_defence_compute(group)
    column, is_share = layout.defence_column(rows)
    return lines_figure(
        "asr_vs_defence_compute",
        "Attack success against defence compute",
        layout.crossed_panels(group, rows, column),
        layout.defence_axis(is_share),
        YAxis("Attack success rate", "logit"),
        "Parameters",
        "band",
        rows,
        "ASR of the final text against what adversarial training has cost, search and training "
        "together, pretraining and clean fine-tuning not included. Round 0 costs nothing and has "
        "no place on the axis. The CSV has the cost in FLOPs and, where pretraining is known, as a "
        "fraction of it.",
        captions.SMOOTHING,
        captions.sample(rows, "attacked"),
        _missing(group, rows, group.attack_names, group.defences),
        columns=max(1, len(group.defences)),
    )


def transfer_across_attacks(group: Group) -> ReportFigure:
    """Does training on one attack help against another?"""
    rows = tables.transfer_across_attacks(group)
    attacks = [name for name in group.attack_names if any(r["attack"] == name for r in rows)]
    return lines_figure(
        "transfer_attack",
        "Transfer of the defence to another attack",
        layout.attack_panels(group, rows, attacks, layout.smooth),
        layout.size_axis(group),
        YAxis("Attack success rate", "logit"),
        "Victim",
        "bars",
        rows,
        "ASR of the final text on victims trained on the attack itself, on another one, and on "
        "none.",
        captions.SMOOTHING,
        captions.rounds(rows),
        captions.sample(rows, "attacked"),
        _missing(group, rows, attacks),
    )


def transfer_across_iterations(group: Group) -> ReportFigure:
    """Does training on a short attack help against a long one?"""
    rows = tables.transfer_across_iterations(group)
    attacks = [name for name in group.attack_names if any(r["attack"] == name for r in rows)]
    names = {"trained": "as many iterations\nas trained on", "last": "all iterations"}
    panels = []
    for attack in attacks:
        mine = [row for row in rows if row["attack"] == attack]
        counts = {
            series: "/".join(
                dict.fromkeys(str(r["iteration"]) for r in mine if r["series"] == series)
            )
            for series in names
        }
        panels.append(
            Panel(
                f"{attack_name(attack)}: {counts['trained']} and {counts['last']} iterations",
                [
                    Line(
                        names[series],
                        *layout.CONDITION_STYLES[1 + index],
                        layout.points(
                            [r for r in mine if r["series"] == series], "num_params", layout.smooth
                        ),
                    )
                    for index, series in enumerate(names)
                ],
            )
        )
    return lines_figure(
        "transfer_iterations",
        "Transfer of the defence to a longer attack",
        panels,
        layout.size_axis(group),
        YAxis("Attack success rate", "logit"),
        "Attacked for",
        "bars",
        rows,
        "ASR after the last round of training on the same attack: at the most iterations any "
        "training round used, and at the last iteration evaluated. Sizes that were not evaluated "
        "for longer than they were trained have no point.",
        captions.SMOOTHING,
        captions.rounds(rows),
        captions.sample(rows, "attacked"),
        captions.missing(
            group,
            rows,
            [(attack_name(attack), {"attack": attack}) for attack in attacks],
        ),
    )


def transfer_matrix(group: Group) -> ReportFigure:
    """Every attack on victims of every defence, a panel a size."""
    rows = transfer.matrix_rows(group) if group.defences else []
    drawn = any(row["trials"] for row in rows)
    matrices = transfer.matrices(group, rows)
    sentences = (
        "ASR of the final text, a panel a model size: rows are what victims were trained on, "
        "columns what they are attacked with (at 0.9 is inside the text, at 0 at its beginning). "
        "A dash was not measured.",
        f"Rounds of adversarial training: {transfer.last_rounds(rows)}." if drawn else "",
        captions.sample(rows, "attacked"),
        "The CSV has every evaluated round, and strengths of 1, 2, 4, ... iterations.",
    )
    return ReportFigure(
        "transfer_matrix",
        "Transfer matrix",
        captions.join(*sentences),
        MatrixDrawing(matrices) if drawn else None,
        rows,
    )


def _missing(
    group: Group,
    rows: Sequence[Row],
    attacks: Sequence[str],
    conditions: Sequence[str] | None = None,
) -> str:
    if conditions is None:
        conditions = (UNDEFENDED, *group.defences)
    return captions.missing(group, rows, captions.attack_series(group, conditions, attacks))
