"""Sections of a report about what was concluded: answers, slopes, attack against defence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from robustjax.analysis import fits, offence, page
from robustjax.analysis.answers import QUESTIONS, WITHHELD, Finding, overall
from robustjax.analysis.attack_scaling import BINOMIAL, LAPLACE, RAW_FINITE
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import attack_name, condition_name, family_name
from robustjax.analysis.sections import identity_columns
from robustjax.evaluation.records import UNDEFENDED

MOST_SHOWN = 8
"""Findings of a question up to which all are shown unasked."""

Fits = Mapping[str, Sequence[Row]]
"""The lists of `fits.json`."""


def findings(groups: Sequence[Group]) -> list[tuple[str, Finding]]:
    """Every question with what every group says to it."""
    return [
        (question.text, finding)
        for question in QUESTIONS
        for group in groups
        for finding in question.findings(group)
    ]


def answers(found: Sequence[tuple[str, Finding]]) -> str:
    """The questions of the study with one verdict each, and what every group says."""
    items = []
    for question in QUESTIONS:
        mine = [finding for text, finding in found if text == question.text]
        verdict = overall(mine)
        sentence, detail = _in_short(mine, question.claim), _detail(mine) if len(mine) > 1 else ""
        is_open = len(mine) <= MOST_SHOWN
        items.append(page.Answer(question.text, verdict, sentence, detail, is_open))
    return page.answers(items)


def _in_short(mine: Sequence[Finding], claim: str) -> str:
    told = [finding for finding in mine if finding.verdict != WITHHELD]
    if not mine:
        return "Nothing was run that tells."
    if len(mine) == 1:
        return f"{mine[0].subject}: {mine[0].sentence}"
    counts = {word: sum(f.verdict == word for f in told) for word in ("yes", "no", "unclear")}
    return (
        f"That {claim} holds in {counts['yes']} of {len(mine)} comparisons, the opposite in "
        f"{counts['no']}; {counts['unclear']} are unclear, {len(mine) - len(told)} withheld."
    )


def _detail(mine: Sequence[Finding]) -> str:
    lines = "".join(
        f"<li>{page.escape(family_name(finding.model_family))} on {page.escape(finding.task)}, "
        f"{page.escape(finding.subject)}: <b>{page.escape(finding.verdict)}</b>. "
        f"{page.escape(finding.sentence)}</li>\n"
        for finding in mine
    )
    return f"<ul>\n{lines}</ul>\n"


def slopes(groups: Sequence[Group], rows: Sequence[Row]) -> str:
    """Attack scaling of undefended victims and after the last round, the methods side by side."""
    last: dict[tuple[str, ...], int] = {}
    for row in rows:
        last[_experiment(row)] = max(row["round"], last.get(_experiment(row), 0))
    by_fit: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row["round"] == last[_experiment(row)]:
            by_fit.setdefault((*_experiment(row), row["point"]), {})[row["method"]] = row
    shown = [
        {
            **_who(group_rows, groups),
            "num_seeds": max(row["num_seeds"] for row in group_rows.values()),
            **{
                f"{method}_{column}": group_rows[method][column] if method in group_rows else None
                for method in (BINOMIAL, RAW_FINITE, LAPLACE)
                for column in ("slope", "ci_low", "ci_high", "n", "n_dropped")
            },
        }
        for group_rows in by_fit.values()
    ]
    columns = {
        **identity_columns(groups, "family"),
        "Attack": page.column("attack"),
        "Victim": page.column("victim"),
        "Round": page.column("round"),
        "x": page.column("x"),
        "Seeds": page.column("num_seeds"),
        "Binomial": page.column(f"{BINOMIAL}_slope", _number),
        "95 % interval": _bounds(BINOMIAL),
        "Released": page.column(f"{RAW_FINITE}_slope", _number),
        "Smoothed": page.column(f"{LAPLACE}_slope", _number),
        "Points": page.column(f"{RAW_FINITE}_n", _count),
        "of which dropped": page.column(f"{RAW_FINITE}_n_dropped", _count),
    }
    caption = (
        f"{page.escape(fits.ATTACK_SCALING_DEFINITION)} Points and those dropped are of the "
        'released method. All rounds: <a href="fits.json">fits.json</a>.'
    )
    return page.table(shown, columns, caption)


def balance(groups: Sequence[Group], rows: Sequence[Row]) -> str:
    """Attack against defence compute, the methods side by side."""
    by_fit: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = (*_experiment(row), row["point"], str(row["target"]))
        by_fit.setdefault(key, {})[row["method"]] = row
    methods = (offence.CENSORED, offence.MEDIAN_FIT, offence.SEED_FIT)
    shown = [
        {
            **_who(group_rows, groups),
            "target": next(iter(group_rows.values()))["target"],
            **{
                f"{method}_{column}": group_rows[method][column] if method in group_rows else None
                for method in methods
                for column in ("slope", "ci_low", "ci_high", "n", "n_censored")
            },
        }
        for group_rows in by_fit.values()
    ]
    columns = {
        **identity_columns(groups, "family"),
        "Attack": page.column("attack"),
        "Victim": page.column("victim"),
        "Target": page.column("target", page.percent),
        "Censored regression": page.column(f"{offence.CENSORED}_slope", _number),
        "95 % interval": _bounds(offence.CENSORED),
        "Victims": page.column(f"{offence.CENSORED}_n", _count),
        "below the target": page.column(f"{offence.CENSORED}_n_censored", _count),
        "Median fit": page.column(f"{offence.MEDIAN_FIT}_slope", _number),
        "Rounds": page.column(f"{offence.MEDIAN_FIT}_n", _count),
        "lost": page.column(f"{offence.MEDIAN_FIT}_n_censored", _count),
        "Seed fit": page.column(f"{offence.SEED_FIT}_slope", _number),
    }
    caption = f"{page.escape(offence.OFFENCE_DEFENCE_DEFINITION)} Data: fits.json."
    return page.table(shown, columns, caption)


def efficiency(groups: Sequence[Group], rows: Sequence[Row]) -> str:
    """Rounds and compute of adversarial training until an attack succeeds rarely."""
    columns = {
        **identity_columns(groups),
        "Attack": page.column("attack", lambda name: page.escape(attack_name(name))),
        "Trained on": page.column("trained_on", lambda name: page.escape(attack_name(name))),
        "Success at most": page.column("target", page.percent),
        "First round": page.column("round", _count),
        "FLOPs": page.column("defence_flops", page.flops),
        "Share of pretraining": page.column("defence_fraction_of_pretraining", page.number),
    }
    caption = (
        "The first evaluated round after which the median over seeds of the smoothed success rate "
        "is at most so high, and what adversarial training had cost by then. A dash: no evaluated "
        'round. Data: <a href="efficiency.csv">efficiency.csv</a>.'
    )
    return page.details(f"Show all {len(rows)} rows", page.table(rows, columns, caption))


def _experiment(row: Row) -> tuple[str, ...]:
    columns = ("family", "task", "training_attack", "attack", "position")
    return tuple(str(row[column]) for column in columns)


def _who(group_rows: Mapping[str, Row], groups: Sequence[Group]) -> Row:
    row = next(iter(group_rows.values()))
    sizes = {
        (group.model_family, group.task, point): size
        for group in groups
        for point, size in group.sizes.items()
    }
    place = "" if row["position"] == "suffix" else f" ({row['position']})"
    return {
        "family": row["family"],
        "task": row["task"],
        "num_params": row["num_params"],
        "size": sizes[row["family"], row["task"], row["point"]],
        "attack": attack_name(row["attack"]) + place,
        "victim": condition_name(row["training_attack"] or UNDEFENDED),
        "round": row.get("round"),
        "x": row["x"],
    }


def _bounds(method: str) -> page.Cell:
    def show(row: Mapping[str, Any]) -> str:
        low, high = row[f"{method}_ci_low"], row[f"{method}_ci_high"]
        return "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"

    return page.Column(show, lambda row: row[f"{method}_ci_low"])


def _number(value: float | int | None) -> str:
    return page.number(math.nan if value is None else value)


def _count(value: float | int | None) -> str:
    return "&ndash;" if value is None or math.isnan(value) else str(int(value))
