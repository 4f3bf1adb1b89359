"""Where measured figures stand, so that the README's tables are what was measured.

python -m benchmarks.results [--write]

Prints the tables made of ``benchmarks/results/*.json``; ``--write`` puts them into README.md and
docs/tpu_plans.md, between ``<!-- NAME -->`` and ``<!-- end -->``.
"""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plan_tables

HERE = Path(__file__).parent
FOLDER, README = HERE / "results", HERE.parent / "README.md"
TPU_PLANS = HERE.parent / "docs" / "tpu_plans.md"

Results = dict[str, Any]
"""Rows of a benchmark, and what they were measured on and how often."""

VARIED = {
    "prefix": "tokens before the slot",
    "candidates": "candidates",
    "tokens": "attack tokens",
    "batch": "examples at once",
    "model": "model",
}


def as_results(rows: Sequence[dict[str, Any]], rounds: int, **more: Any) -> Results:
    """Rows with what they were measured on."""
    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "jax": importlib.metadata.version("jax"),
    }
    return {"machine": machine, "rounds": rounds, **more, "rows": list(rows)}


def write_results(name: str, results: Results) -> None:
    """Keeps the results of a benchmark."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


def read_results(name: str) -> Results:
    """The results of a benchmark."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def comparison_table(results: Results) -> list[str]:
    """GCG against nanoGCG."""
    together = results["together"]
    lines = [
        f"| model | nanoGCG | robustjax | times as fast | robustjax, {together} examples at once "
        f"| times as fast, {together} at once | useful FLOPs, of the matmul rate "
        "| executed FLOPs, of the matmul rate | memory, nanoGCG | memory, robustjax "
        f"| memory, {together} examples at once "
        "| robustjax, classifier | classifier: useful FLOPs, of the matmul rate |",
        _rule(13),
    ]
    for row in results["rows"]:
        theirs, ours, many, classifier = (
            row[side] for side in ("nanogcg", "ours", "ours_together", "ours_classifier")
        )
        lines.append(
            f"| {row['point']} | {theirs['milliseconds']:,.0f} ms "
            f"| {ours['milliseconds']:,.0f} ms | {row['ratio']:.1f} "
            f"| {many['milliseconds']:,.0f} ms | {row['ratio_together']:.1f} "
            f"| {_percent(ours['useful_share'])} | {_percent(ours['executed_share'])} "
            f"| {theirs['peak_resident_gb']:.2f} GB | {ours['peak_resident_gb']:.2f} GB "
            f"| {many['peak_resident_gb']:.2f} GB "
            f"| {classifier['milliseconds']:,.0f} ms | {_percent(classifier['useful_share'])} |"
        )
    sides = [row["runs"][side] for row in results["rows"] for side in row["runs"]]
    ours = [run for runs in sides for run in runs if "matmul_gflops" in run]
    return [*lines, "", _measured_on(results, ours)]


def scaling_table(results: Results) -> list[str]:
    """Cost of GCG against one size at a time."""
    lines = [
        f"A classifier of the shape of {results['base']}, one thing changed at a time:",
        "",
        "| what differs | value | iteration and example | executed GFLOP "
        "| useful FLOPs, of the matmul rate | executed FLOPs, of the matmul rate "
        "| matmul GFLOP/s | memory | compile |",
        _rule(9),
    ]
    for row in results["rows"]:
        found = row["measured"]
        lines.append(
            f"| {VARIED[row['varied']]} | {row['value']} | {found['milliseconds']:,.0f} ms "
            f"| {found['executed_gflop']:,.1f} | {_percent(found['useful_share'])} "
            f"| {_percent(found['executed_share'])} | {found['matmul_gflops']:,.0f} "
            f"| {found['peak_resident_gb']:.2f} GB | {found['compile_seconds']:.0f} s |"
        )
    growth = results["prefix_growth"]
    short, long = growth["of"]
    ratios = (
        f"With {long} tokens before the slot instead of {short} an iteration takes "
        f"{growth['milliseconds']:.2f} times as long and executes {growth['executed_gflop']:.2f} "
        "times the FLOPs."
    )
    runs = [run for row in results["rows"] for run in row["runs"]]
    return [*lines, "", ratios, _measured_on(results, runs)]


def training_table(results: Results) -> list[str]:
    """A training step against torch's."""
    lines = [
        "| model | torch | robustjax | times as fast | memory, torch | memory, robustjax |",
        _rule(6),
    ]
    for row in results["rows"]:
        theirs, ours = row["torch"], row["ours"]
        lines.append(
            f"| {row['point']} | {theirs['seconds_a_step']:.2f} s | {ours['seconds_a_step']:.2f} s "
            f"| {row['ratio']:.2f} | {theirs['peak_resident_gb']:.2f} GB "
            f"| {ours['peak_resident_gb']:.2f} GB |"
        )
    runs = [run for row in results["rows"] for side in row["runs"].values() for run in side]
    return [*lines, "", _measured_on(results, runs)]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _measured_on(results: Results, runs: Sequence[dict[str, float]]) -> str:
    machine, rounds = results["machine"], results["rounds"]
    rates = [run["matmul_gflops"] for run in runs]
    often = (
        "Provisional, not to be relied on: one run each"
        if rounds == 1
        else f"Medians of {rounds} runs"
    )
    where = f"{machine['cores']} cores of {machine['cpu']}, jax {machine['jax']}"
    return f"{often} on {where}; the matmul rate was {min(rates):.0f} to {max(rates):.0f} GFLOP/s."


TABLES = {
    "gcg_vs_nanogcg": comparison_table,
    "gcg_scaling": scaling_table,
    "train_vs_torch": training_table,
    "points": plan_tables.points_table,
}
"""What stands in the README, by the name of its results (but see SOURCES)."""

PLAN_TABLES = {
    "plans": plan_tables.plans_table,
    "strong_scaling": plan_tables.scaling_table,
    "study_hours": plan_tables.study_table,
}
"""What stands in docs/tpu_plans.md."""

PAGES = dict.fromkeys(TABLES, README) | dict.fromkeys(PLAN_TABLES, TPU_PLANS)
"""Where each table stands."""

SOURCES = {"points": "plans"}
"""Results of tables that are not called as their results are."""


def tables() -> Iterator[tuple[str, str]]:
    """Name and text of each table, from the results that are kept."""
    for name, table in (TABLES | PLAN_TABLES).items():
        yield name, "\n".join(table(read_results(SOURCES.get(name, name))))


def with_table(page: str, name: str, table: str) -> str:
    """A page with another table between the marks of this name.

    Raises:
        ValueError: the page has no such marks.
    """
    mark, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, mark_found, rest = page.partition(mark)
    _, end_found, after = rest.partition(end)
    if not (mark_found and end_found):
        raise ValueError(f"the page has no place for {name}: add {mark!r} and {end!r}")
    return f"{before}{mark}{table}\n{end}{after}"


def main() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES.values()}
    for name, table in tables():
        print(table, end="\n\n")
        pages[PAGES[name]] = with_table(pages[PAGES[name]], name, table)
    if "--write" in sys.argv:
        for path, page in pages.items():
            path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
