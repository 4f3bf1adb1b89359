"""How rows of a table become the lines and panels of a figure."""

import math
from collections.abc import Callable, Iterable, Sequence

from robustjax.analysis import canvas
from robustjax.analysis.drawing import Line, Panel, Point, XAxis
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import attack_name, condition_name
from robustjax.evaluation.records import UNDEFENDED

Value = Callable[[Row], tuple[float, float, float]]
"""Picks value, lower and upper bound from a row."""

CONDITION_STYLES = (
    ("#333333", "o"),
    ("#0072B2", "s"),
    ("#D55E00", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
)
"""Colour (readable for the colour-blind, Okabe and Ito) and marker: undefended, then defences."""


def size_axis(group: Group) -> XAxis:
    """An axis with a tick for every model size of the group, measured or not."""
    ticks = [(float(group.num_params[point]), label) for point, label in group.sizes.items()]
    return XAxis("Parameters", "size", ticks)


def compute_column(rows: Sequence[Row]) -> str:
    """The best column of attack compute that all rows have."""
    for column in ("attack_fraction_of_pretraining", "attack_flops"):
        if rows and not any(math.isnan(row[column]) for row in rows):
            return column
    return "iteration"


def compute_axis(column: str) -> XAxis:
    """The axis of that column."""
    if column == "attack_fraction_of_pretraining":
        return XAxis("Attack compute of all examples / pretraining compute", "fraction")
    if column == "attack_flops":
        words = "Cumulative attack compute per attacked example (algorithmic FLOPs)"
        return XAxis(words, "flops")
    return XAxis("Attack iterations", "flops")


def defence_column(rows: Sequence[Row]) -> tuple[str, bool]:
    """The best column of defence compute that all rows have, and whether it is a share."""
    column = "defence_fraction_of_pretraining"
    is_share = bool(rows) and not any(math.isnan(row[column]) for row in rows)
    return (column if is_share else "defence_flops"), is_share


def defence_axis(is_share: bool) -> XAxis:
    """The axis of defence compute, as a share of pretraining or absolute."""
    if is_share:
        return XAxis("Adversarial training / pretraining compute", "fraction")
    return XAxis("Cumulative adversarial training compute (algorithmic FLOPs)", "flops")


def plain(row: Row) -> tuple[float, float, float]:
    """Rate and interval as observed."""
    return row["value"], row["low"], row["high"]


def smooth(row: Row) -> tuple[float, float, float]:
    """Rate and interval for a logit axis."""
    return row["smoothed"], row["smoothed_low"], row["smoothed_high"]


def points(rows: Iterable[Row], x: str, value: Value) -> list[Point]:
    """Rows as points, column `x` against what `value` picks."""
    return [Point(float(row[x]), *value(row)) for row in rows]


def condition_lines(group: Group, rows: Sequence[Row], value: Value) -> list[Line]:
    """A line a condition, undefended first, against size."""
    lines = []
    for index, condition in enumerate((UNDEFENDED, *group.defences)):
        mine = [row for row in rows if row["trained_on"] == condition]
        style = CONDITION_STYLES[index % len(CONDITION_STYLES)]
        lines.append(Line(condition_name(condition), *style, points(mine, "num_params", value)))
    return lines


def attack_panels(
    group: Group, rows: Sequence[Row], attacks: Sequence[str], value: Value
) -> list[Panel]:
    """A panel an attack, with a line a condition."""
    return [
        Panel(
            f"{attack_name(attack)} attack",
            condition_lines(group, [row for row in rows if row["attack"] == attack], value),
        )
        for attack in attacks
    ]


def crossed(group: Group, rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """Attack and defence with their rows, those that have any."""
    pairs = [
        (attack, defence, [r for r in rows if (r["attack"], r["trained_on"]) == (attack, defence)])
        for attack in group.attack_names
        for defence in group.defences
    ]
    return [pair for pair in pairs if pair[2]]


def crossed_title(attack: str, defence: str) -> str:
    """Heading of a panel about an attack and a defence."""
    return f"{attack_name(attack)} attack,\ntrained on {attack_name(defence)}"


def crossed_panels(
    group: Group, rows: Sequence[Row], x: str, value: Value | None = None
) -> list[Panel]:
    """A panel an attack and defence, with a line a size, against column `x`."""
    return [
        Panel(crossed_title(attack, defence), size_lines(group, mine, x, value))
        for attack, defence, mine in crossed(group, rows)
    ]


def size_lines(group: Group, rows: Sequence[Row], x: str, value: Value | None = None) -> list[Line]:
    """A line a size against column `x`; smoothed unless `value` says else."""
    return lines_by_size(group, rows, lambda row: Point(float(row[x]), *(value or smooth)(row)))


def lines_by_size(
    group: Group, rows: Sequence[Row], to_point: Callable[[Row], Point]
) -> list[Line]:
    """A line for each size that has rows, coloured by size."""
    colours = canvas.size_colours(len(group.sizes), group.model_family)
    of_size = {point: [row for row in rows if row["point"] == point] for point in group.sizes}
    return [
        Line(label, colour, "o", [to_point(row) for row in of_size[point]])
        for (point, label), colour in zip(group.sizes.items(), colours, strict=True)
        if of_size[point]
    ]
