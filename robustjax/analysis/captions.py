"""Sentences under the figures, computed from the rows the figures show."""

from collections.abc import Iterable, Mapping, Sequence

from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import attack_name, condition_name
from robustjax.analysis.rates import SEED_RANGE, WILSON

SMOOTHING = (
    "Rates are smoothed, (p n + 1) / (n + 2) with n the examples offered, so that 0 and 1 have a "
    "place on the logit axis; interval bounds of 0 or 1 run to the edge."
)


def join(*sentences: str) -> str:
    """Sentences as one caption, empty ones left out."""
    return " ".join(filter(None, sentences))


def sample(rows: Sequence[Row], denominator: str) -> str:
    """How many examples and seeds are behind the points, and what the intervals are."""
    measured = [row for row in rows if row["trials"]]
    if not measured:
        return "There is no point to show."
    offered = _range(row["offered"] / row["num_seeds"] for row in measured)
    trials = _range(row["trials"] / row["num_seeds"] for row in measured)
    seeds = _range(row["num_seeds"] for row in measured)
    per_seed = f"n = {offered} examples"
    if denominator != "offered":
        per_seed += f" offered, {trials} of them {denominator}"
    kinds = {row["interval"] for row in measured}
    intervals = {
        (WILSON,): "Intervals are Wilson 95 %.",
        (SEED_RANGE,): "Points are medians, intervals run from the lowest to the highest seed; "
        "Wilson 95 % intervals of the pooled counts are in the CSV.",
    }.get(
        tuple(sorted(kinds)),
        "Where there are several seeds, points are medians and intervals run from the lowest to "
        "the highest seed (pooled Wilson 95 % intervals are in the CSV); elsewhere intervals are "
        "Wilson 95 %.",
    )
    seeds += " seed" if seeds == "1" else " seeds"
    return f"Each point: {seeds}; per seed {per_seed}. {intervals}"


def missing(
    group: Group, rows: Sequence[Row], series: Iterable[tuple[str, Mapping[str, str]]]
) -> str:
    """Name the sizes that have no point in a series; empty if there are none.

    Args:
        group: says which sizes there are.
        rows: the points shown.
        series: name of each series, and the column values its rows have.
    """
    gaps = []
    for name, columns in series:
        present = {row["point"] for row in rows if row["trials"] and columns.items() <= row.items()}
        absent = [label for point, label in group.sizes.items() if point not in present]
        if absent:
            gaps.append(f"{', '.join(absent)} ({name})" if name else ", ".join(absent))
    return f"No data: {'; '.join(gaps)}." if gaps else ""


def attack_series(
    group: Group, conditions: Sequence[str], attacks: Sequence[str]
) -> list[tuple[str, Mapping[str, str]]]:
    """The series attack x condition of a table, as `missing` wants them."""
    return [
        (
            f"{attack_name(attack)}, {condition_name(condition)}",
            {"attack": attack, "trained_on": condition},
        )
        for attack in attacks
        for condition in conditions
    ]


def rounds(rows: Sequence[Row]) -> str:
    """Which rounds "last" means, and where sizes differ."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["round"] != 0 and row["size"] not in found.setdefault(str(row["round"]), []):
            found[str(row["round"])].append(row["size"])
    if not found:
        return ""
    if len(found) == 1:
        return f"The last evaluated round is {next(iter(found))}."
    parts = [f"{number} ({', '.join(sizes)})" for number, sizes in sorted(found.items())]
    return f"The last evaluated round is {', '.join(parts)}."


def iterations(rows: Sequence[Row]) -> str:
    """How many iterations the attacks ran."""
    measured = [row for row in rows if row["trials"]]
    found = sorted({(attack_name(row["attack"]), str(row["iterations"])) for row in measured})
    by_attack: dict[str, list[str]] = {}
    for name, count in found:
        by_attack.setdefault(name, []).append(count)
    parts = [f"{' or '.join(counts)} for {name}" for name, counts in by_attack.items()]
    return f"Attack iterations: {', '.join(parts)}." if parts else ""


def _range(values: Iterable[float]) -> str:
    ordered = sorted(values)
    low, high = f"{ordered[0]:.4g}", f"{ordered[-1]:.4g}"
    return low if low == high else f"{low} to {high}"
