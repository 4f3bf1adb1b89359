"""Figures of scaling laws: slopes against size, rounds, budgets, and attack against defence."""

import functools
import math
from collections.abc import Sequence

from robustjax.analysis import budgets, canvas, captions, fits, layout, offence, tables
from robustjax.analysis.attack_scaling import BINOMIAL
from robustjax.analysis.drawing import Fit, Guides, Line, Panel, Point, YAxis
from robustjax.analysis.estimators import SizeTrend, size_trend
from robustjax.analysis.figure import ReportFigure, lines_figure
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import attack_file_name, attack_name, condition_name
from robustjax.evaluation.records import UNDEFENDED

SHOWN_ROUNDS = (0, 1, 2, 3, 4, 5, 10)
"""As in Howe et al. 2024 (arXiv 2407.18213)."""


def slope_against_size(group: Group) -> ReportFigure:
    """Does an attack pay less on larger models? Slopes of attack scaling with their trend."""
    rows, panels, sentences = [], [], []
    for attack in group.attack_names:
        for trained_on in (UNDEFENDED, *group.defences):
            chosen = budgets.rounds_by_rule(group, attack, trained_on)
            for rule in ("undefended", budgets.LAST):
                if rule in chosen:
                    mine = _slope_rows(group, attack, trained_on, rule, chosen[rule])
                    rows += mine
                    name = f"{attack_name(attack)},\n{condition_name(trained_on)}"
                    panel, sentence = _slope_panel(name, mine)
                    panels.append(panel)
                    sentences.append(sentence)
    return lines_figure(
        "slope_vs_size",
        "Slope of attack scaling against model size",
        panels,
        layout.size_axis(group),
        YAxis("Log-odds (base 10) per decade", "slope", reference=0.0),
        "Slope",
        "bars",
        rows,
        "Growth of the log-odds of attack success per decade of attack compute: binomial "
        "likelihood with a common slope over seeds, intervals from a bootstrap over seeds (none "
        "for a single seed). Dashed: least squares through the sizes.",
        *sentences,
    )


def asr_after_rounds(group: Group) -> ReportFigure:
    """Success against size after the same few rounds of adversarial training."""
    rows = [row for row in tables.asr_against_round(group) if row["round"] in SHOWN_ROUNDS]
    numbers = sorted({row["round"] for row in rows})
    colours = dict(zip(numbers, canvas.round_colours(len(numbers)), strict=True))
    panels = [
        Panel(
            layout.crossed_title(attack, trained_on),
            [
                Line(
                    str(number),
                    colours[number],
                    "o",
                    layout.points(
                        [r for r in mine if r["round"] == number], "num_params", layout.smooth
                    ),
                )
                for number in numbers
            ],
        )
        for attack, trained_on, mine in layout.crossed(group, rows)
    ]
    return lines_figure(
        "asr_after_rounds",
        "Attack success against model size after the same rounds",
        panels,
        layout.size_axis(group),
        YAxis("Attack success rate", "logit"),
        "Round",
        "band",
        rows,
        "ASR of the final text after the first rounds of adversarial training, against size.",
        captions.SMOOTHING,
        captions.iterations(rows),
        captions.sample(rows, "attacked"),
    )


def asr_at_budgets(group: Group, attack: str, trained_on: str) -> ReportFigure:
    """Attack scaling of victims that spent the same share of pretraining on their defence."""
    of_budget = {
        rule: [
            {"budget": rule, **row}
            for runs in chosen.values()
            for row in tables.attack_curve(group, runs)
        ]
        for rule, chosen in budgets.rounds_by_rule(group, attack, trained_on).items()
        if rule not in ("0", budgets.LAST)
    }
    rows = [row for mine in of_budget.values() for row in mine]
    column = layout.compute_column(rows)
    panels = [
        Panel(f"{100 * float(rule):g} % of pretraining", layout.size_lines(group, mine, column))
        for rule, mine in of_budget.items()
    ]
    rounds = {
        row["budget"]: f"{row['budget']}: "
        + ", ".join(
            dict.fromkeys(f"{r['size']} {r['round']}" for r in rows if r["budget"] == row["budget"])
        )
        for row in rows
    }
    return lines_figure(
        f"asr_at_budgets_{attack_file_name(attack)}_trained_on_{attack_file_name(trained_on)}",
        f"{attack_name(attack)} after training on {attack_name(trained_on)} at equal cost",
        panels,
        layout.compute_axis(column),
        YAxis("Attack success rate", "logit"),
        "Parameters",
        "band",
        rows,
        "ASR after each iteration on victims whose adversarial training had cost the same share of "
        "pretraining: of each size the round that is nearest, at least 1 and never more than that "
        "of the next smaller size.",
        f"Rounds by budget: {'; '.join(rounds.values())}." if rounds else "",
        captions.SMOOTHING,
        captions.sample(rows, "attacked"),
    )


def asr_at_all_budgets(group: Group) -> list[ReportFigure]:
    """A figure an attack and defence whose costs are known as shares of pretraining."""
    return [
        asr_at_budgets(group, attack, trained_on)
        for attack in group.attack_names
        for trained_on in group.defences
        if len(budgets.rounds_by_rule(group, attack, trained_on).keys() - {"0", budgets.LAST})
    ]


def offence_against_defence(group: Group) -> ReportFigure:
    """What a target success rate costs the attacker, against what the defender has spent."""
    rows = offence.offence_rows(group)
    shown = _telling(rows)
    kinds = {row["y"] for row in shown}
    # Sizes of which no FLOPs are known would have no place beside the others.
    in_iterations = "iteration" in kinds
    panels = [
        Panel(
            f"{attack_name(attack)} attack to {target:.0%},\ntrained on {attack_name(trained_on)}",
            layout.lines_by_size(
                group,
                [row for row in mine if row["target"] == target],
                functools.partial(_cost_point, in_iterations),
            ),
            guides=Guides(),
        )
        for attack, trained_on, mine in layout.crossed(group, shown)
        for target in offence.TARGETS
        if any(row["target"] == target for row in mine)
    ]
    is_share = all(row["x"] == "flops_fraction" for row in shown)
    return lines_figure(
        "offence_vs_defence",
        "Attack compute for a target success rate against defence compute",
        panels,
        layout.defence_axis(is_share),
        YAxis(_attack_label(kinds), "flops"),
        "Parameters",
        "band",
        rows,
        "What an attack spends on each example offered until it succeeds on the given share of the "
        "attacked ones, against the cumulative cost of adversarial training. Points are medians "
        "over the seeds that reach the target, bands their range; an open triangle stands where "
        "none does, at what was spent. Dashed lines have slope 1: along them attack and defence "
        "grow alike. Targets below one example, and sizes evaluated after a single round, are in "
        "the CSV alone.",
        "Attacks are counted in iterations because not all have known FLOPs; of one size all "
        "iterations cost the same."
        if in_iterations
        else "",
        columns=2,
    )


def _telling(rows: Sequence[Row]) -> list[Row]:
    """Rows of crossings that were measured, of sizes that show how they grow over the rounds."""
    measured = [r for r in rows if not r["is_coarse"] and r["target"] >= r["resolution"]]
    rounds: dict[tuple[str, str, str], set[int]] = {}
    for row in measured:
        key = (row["attack"], row["trained_on"], row["point"])
        rounds.setdefault(key, set()).add(row["round"])
    return [r for r in measured if len(rounds[r["attack"], r["trained_on"], r["point"]]) > 1]


def _slope_rows(
    group: Group, attack: str, trained_on: str, rule: str, chosen: fits.Chosen
) -> list[Row]:
    rows = []
    for point, runs in chosen.items():
        kind, fit = fits.fit_runs(runs, BINOMIAL)
        if fit is not None:
            rows.append(
                {
                    **group.identity(point),
                    "attack": attack,
                    "trained_on": trained_on,
                    "round": tables.span([run.round for run in runs]),
                    "x": kind,
                    "slope": fit.slope,
                    "ci_low": fit.ci_low,
                    "ci_high": fit.ci_high,
                    "num_seeds": fit.num_seeds,
                    "n": fit.n,
                    "n_dropped": fit.n_dropped,
                }
            )
    return rows


def _slope_panel(name: str, rows: Sequence[Row]) -> tuple[Panel, str]:
    points = [Point(float(r["num_params"]), r["slope"], r["ci_low"], r["ci_high"]) for r in rows]
    line = Line("slope of a size", "#333333", "o", points)
    sizes = [math.log10(row["num_params"]) for row in rows]
    trend = size_trend(sizes, [row["slope"] for row in rows]) if rows else None
    if trend is None:
        return Panel(name, [line]), ""
    return Panel(name, [line], fits=[_trend_line(trend, rows)]), (
        f"{name.replace(chr(10), ' ')}: {trend.fit.slope:+.2f} per decade of parameters, "
        f"{trend.loso_low:+.2f} to {trend.loso_high:+.2f} without any one size (the most "
        f"influential is {rows[trend.most_influential]['size']})."
    )


def _trend_line(trend: SizeTrend, rows: Sequence[Row]) -> Fit:
    places = [float(row["num_params"]) for row in rows]
    ends = [min(places), max(places)]
    low, high = (trend.fit.intercept + trend.fit.slope * math.log10(end) for end in ends)
    r2 = "" if math.isnan(trend.fit.r2) else f"R² = {trend.fit.r2:.2f}"
    return Fit(r2, ends[0], low, ends[1], high)


def _cost_point(in_iterations: bool, row: Row) -> Point:
    unit = 1.0 if in_iterations else row["cost_of_iteration"]
    if math.isnan(row["iterations"]):
        spent = row["iterations_run"] * unit
        return Point(row["defence"], spent, math.nan, math.nan, is_bound=True)
    middle, low, high = (row[f"iterations{end}"] * unit for end in ("", "_min", "_max"))
    return Point(row["defence"], middle, low, high)


def _attack_label(kinds: set[str]) -> str:
    if "iteration" in kinds:
        return "Attack iterations"
    share = kinds == {"flops_fraction"}
    return f"Attack on an example {'/ pretraining compute' if share else '(algorithmic FLOPs)'}"
