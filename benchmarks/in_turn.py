"""Measurements in turn: each case once, then each case again.

The speed of a machine that others use drifts over minutes. Cases of one round share that drift, so
they are compared within rounds.
"""

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

Figures = dict[str, float]
"""What one run measured, by name."""


def measure_in_turn(
    cases: Mapping[str, Callable[[], Figures]], rounds: int
) -> dict[str, list[Figures]]:
    """Runs every case once a round and shows each result at once.

    Returns:
        The figures of every case, one entry a round.
    """
    found: dict[str, list[Figures]] = {name: [] for name in cases}
    for number in range(1, rounds + 1):
        for name, measure in cases.items():
            figures = measure()
            found[name].append(figures)
            print(json.dumps({"round": number, "case": name} | figures), flush=True)
    return found


def run(*command: str) -> Figures:
    """The figures on the last line that a command prints."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def medians(runs: Sequence[Figures]) -> Figures:
    """Of each figure."""
    return {name: round(statistics.median(one[name] for one in runs), 3) for name in runs[0]}


def median_ratio(above: Sequence[Figures], below: Sequence[Figures], name: str) -> float:
    """Of a figure in two cases: the ratio within each round, and of these the median."""
    ratios = [a[name] / b[name] for a, b in zip(above, below, strict=True)]
    return round(statistics.median(ratios), 2)


def compared(
    point: str, runs: Mapping[str, Sequence[Figures]], sides: Sequence[str], name: str
) -> dict[str, Any]:
    """The row of a scaling point whose cases are called by point and side.

    Args:
        point: the scaling point.
        runs: what `measure_in_turn` found.
        sides: theirs and ours, then what stands beside them.
        name: the figure of which the ratio, theirs by ours, is taken.
    """
    found = {side: runs[f"{point} {side}"] for side in sides}
    theirs, ours, *_ = found.values()
    medians_of = {side: medians(some) for side, some in found.items()}
    return {"point": point, "ratio": median_ratio(theirs, ours, name), **medians_of, "runs": found}
