"""The tables of docs/tpu_plans.md, from what is kept in ``benchmarks/results/``."""

import itertools
from typing import Any

from configs.points import PUBLISHED_POINTS

Results = dict[str, Any]

NUM_CANDIDATES = 128
PAYS = 0.5
"""A doubling pays if it makes an iteration faster by at least this share of what it could: twice as
many chips at least 1.5 times as fast. Adding chips pays up to the last doubling that does, even if
one before it does not."""


def points_table(results: Results) -> list[str]:
    """How every scaling point is run: its row in configs/points.py, and whether it fits."""
    lines = [
        "| point | slice | mesh, attack | mesh, training | numbers | examples at once | candidates "
        "at once | rounds (GCG) | memory used, attack | memory used, training |",
        _rule(10),
    ]
    for row in results["rows"]:
        attack, training = row["attack"], row["training"]
        lines.append(
            f"| {row['point']} | {attack['topology']} | {_mesh(attack)} | {_mesh(training)} "
            f"| {row['compute_dtype']} | {row['batch_size']} | {row['candidate_chunk']} "
            f"| {row['rounds']['gcg']} | {_share(attack)} | {_share(training)} |"
        )
    return lines


def plans_table(results: Results) -> list[str]:
    """What every scaling point takes on its default slice."""
    lines = [
        "| point | slice | memory, attack | memory, training | iteration and example | limited by "
        "| sent a candidate | text trained on | limited by | compiled in |",
        _rule(10),
    ]
    for row in results["rows"]:
        attack, training = row["attack"], row["training"]
        step = training["programs"]["train_step"]
        scoring = attack["programs"]["score_replacements"]
        seconds = attack["chips"] * iteration_seconds(attack) / row["batch_size"]
        trained = training["chips"] * step["seconds"]["bound"] / row["microbatch_size"]
        compiled = sum(
            one["seconds_compile"]
            for plan in (attack, training)
            for one in plan["programs"].values()
        )
        lines.append(
            f"| {row['point']} | {attack['topology']} | {_memory(attack)} | {_memory(training)} "
            f"| {1e3 * seconds:,.3g} chip-ms | {scoring['limit']} | {_sent(row)} "
            f"| {1e3 * trained:,.3g} chip-ms | {step['limit']} | {compiled:,.0f} s |"
        )
    return [*lines, "", *_missing(results), _from(results)]


def _missing(results: Results) -> list[str]:
    """Says which points were not compiled."""
    there = {row["point"] for row in results["rows"]}
    names = [name for name in PUBLISHED_POINTS if name not in there]
    return [f"Not compiled yet: {', '.join(names)}.", ""] if names else []


def iteration_seconds(plan: dict[str, Any]) -> float:
    """The bound of one iteration on a batch."""
    programs = plan["programs"]
    return sum(programs[name]["seconds"]["bound"] for name in ("propose", "score_replacements"))


def scaling_table(results: Results) -> list[str]:
    """The same examples on more and more chips."""
    lines = [
        "| chips | slice | mesh | candidates a pass | an iteration | limited by "
        "| faster than half the chips | chip-ms an iteration and example |",
        _rule(8),
    ]
    before: float | None = None
    for row in best_rows(results):
        seconds, examples = row["seconds"], results["examples"]
        speedup = f"{before / seconds:.2f} times" if before else ""
        before = seconds
        lines.append(
            f"| {row['chips']} | {row['topology']} | {_mesh(row)} | {row['candidate_chunk']} "
            f"| {1e3 * seconds:,.1f} ms | {row['limit']} | {speedup} "
            f"| {1e3 * row['chips'] * seconds / examples:,.1f} |"
        )
    sentence = (
        f"{results['examples']} examples, prompts of {results['prompt_tokens']} tokens, 128 "
        f"candidates. {_where_it_stops(results)}"
    )
    return [*lines, "", sentence, "", _from(results)]


def best_rows(results: Results) -> list[dict[str, Any]]:
    """Of each slice the fastest mesh that fits; smallest slice first."""
    best: dict[int, dict[str, Any]] = {}
    for row in results["rows"]:
        known = best.get(row["chips"])
        if row["fits"] and (known is None or row["seconds"] < known["seconds"]):
            best[row["chips"]] = row
    return [best[chips] for chips in sorted(best)]


def _where_it_stops(results: Results) -> str:
    rows = best_rows(results)
    sentence = f"Up to {rows[-1]['chips']} chips, adding chips pays."
    for few, many in reversed(list(itertools.pairwise(rows))):
        faster = few["seconds"] / many["seconds"]
        if (faster - 1) / (many["chips"] / few["chips"] - 1) >= PAYS:
            break
        sentence = (
            f"From {few['chips']} to {many['chips']} chips an iteration becomes {faster:.2f} times "
            "as fast: there, adding chips stops paying."
        )
    return sentence


def study_table(results: Results) -> list[str]:
    """Chip-hours of the paper's study against its algorithmic FLOPs."""
    lines = [
        "| point | clean training | attacks on it | hardening | attacks on hardened models | all "
        "| algorithmic FLOPs | of the chips' peak |",
        _rule(8),
    ]
    total_hours = total_flops = 0.0
    for row in results["rows"]:
        hours, flops = sum(row["chip_hours"].values()), sum(row["flops"].values())
        total_hours, total_flops = total_hours + hours, total_flops + flops
        kinds = " | ".join(f"{one:,.1f}" for one in row["chip_hours"].values())
        lines.append(
            f"| {row['point']} | {kinds} | {hours:,.1f} | {flops:.2e} | {_peak(flops, hours)} |"
        )
    peak = _peak(total_flops, total_hours)
    lines.append(f"| all of these | | | | | {total_hours:,.0f} | {total_flops:.2e} | {peak} |")
    return [*lines, "", _from(results)]


def _peak(flops: float, hours: float) -> str:
    """Algorithmic FLOPs as a share of what v5e chips can do at best in these hours."""
    return f"{flops / (hours * 3600 * 197e12):.1f} times"


def _mesh(row: dict[str, Any]) -> str:
    return " x ".join(str(size) for size in row["mesh"].values())


def _sent(row: dict[str, Any]) -> str:
    """Bytes that a chip sends for each candidate that it has a part in scoring."""
    attack = row["attack"]
    sent = sum(attack["programs"]["score_replacements"]["collective_bytes"].values())
    candidates = row["batch_size"] / attack["mesh"]["data"] * NUM_CANDIDATES
    return f"{sent / candidates / 1e6:,.1f} MB"


def _share(plan: dict[str, Any]) -> str:
    return f"{100 * plan['peak'] / plan['hbm']:.0f} %"


def _memory(plan: dict[str, Any]) -> str:
    return f"{plan['peak'] / 2**30:.1f} GiB ({_share(plan)})"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _from(results: Results) -> str:
    compiler = f"jax {results['machine']['jax']} and libtpu {results['libtpu']}"
    return f"Compiled with {compiler}; nothing was run."
