"""GCG against nanoGCG 0.3.0 on the same weights, prompt, target and number of candidates.

python -m benchmarks.gcg_vs_nanogcg PYTHON_WITH_NANOGCG [--quick] [POINT ...]

What is measured is an iteration: gradient, drawing 128 candidates, the filter that lets only those
pass that re-tokenise to themselves, scoring, choice. Loading, compiling, encoding the prefix and
the first iteration are left out on both sides. Both attack one example in float32: a prefix of 200
tokens, whose keys and values both keep, ten attack tokens, some text, and one target token that a
language model should say. nanoGCG scores the candidates that passed the filter; ours scores all of
them while the filter runs. Weights are random, since speed does not depend on them.

nanoGCG attacks one example at a time. robustjax attacks many in one program, as whoever attacks a
data set does: a side of eight examples, each with a cache and a draw of its own, stands beside the
one of a single example; its time is of one of them.

The classifier that robustjax attacks otherwise stands beside it without a ratio: nanoGCG has none.

Every side of every scaling point runs once a round, in a process of its own, for three rounds.
Prints a line of JSON for each run, then the table, and leaves both sides' figures in
``benchmarks/results/gcg_vs_nanogcg.json``. ``--quick`` is one round of the smallest point with two
iterations, which shows that it works; it leaves nothing.
"""

import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.gcg_case import bench_tokenizer, write_case
from benchmarks.in_turn import Figures, compared, measure_in_turn, median_ratio, run
from benchmarks.results import Results, as_results, comparison_table, write_results

SIDES = ("nanogcg", "ours", "ours_together", "ours_classifier")
TOGETHER = 8
"""Examples that `ours_together` attacks at once."""
NAME = "gcg_vs_nanogcg"
POINTS = ("pythia-14m", "pythia-70m", "pythia-160m")
PREFIX = 200
ROUNDS = 3
OUR_STEPS, TOGETHER_STEPS, THEIR_STEPS = 8, 3, 4


def main() -> None:
    is_quick = "--quick" in sys.argv
    nanogcg, *points = [one for one in sys.argv[1:] if one != "--quick"]
    if is_quick:
        print("\n".join(comparison_table(measure(nanogcg, POINTS[:1], rounds=1, steps=(2, 2)))))
        return
    results = measure(nanogcg, points or POINTS, ROUNDS, (OUR_STEPS, THEIR_STEPS))
    print("\n".join(comparison_table(results)))
    write_results(NAME, results)


def measure(
    nanogcg: str, points: list[str] | tuple[str, ...], rounds: int, steps: tuple[int, int]
) -> Results:
    """All sides of some scaling points in turn.

    Args:
        nanogcg: a Python that has nanoGCG.
        steps: timed iterations of ours and of theirs.
    """
    tokenizer = bench_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        cases: dict[str, Callable[[], Figures]] = {}
        for point in points:
            folder = Path(scratch) / point
            write_case(point, folder, PREFIX, tokenizer)
            ours = (sys.executable, "-m", "benchmarks.gcg_ours", str(folder))
            us, few = (*ours, f"--steps={steps[0]}"), f"--steps={min(TOGETHER_STEPS, steps[0])}"
            them = (nanogcg, "-m", "benchmarks.gcg_nanogcg", str(folder), str(steps[1]))
            cases |= {
                f"{point} ours": functools.partial(run, *us),
                f"{point} nanogcg": functools.partial(run, *them),
                f"{point} ours_together": functools.partial(run, *ours, f"--batch={TOGETHER}", few),
                f"{point} ours_classifier": functools.partial(run, *us, "--classifier"),
            }
        runs = measure_in_turn(cases, rounds)
    rows = [
        compared(point, runs, SIDES, "milliseconds")
        | {
            "ratio_together": median_ratio(
                runs[f"{point} nanogcg"], runs[f"{point} ours_together"], "milliseconds"
            )
        }
        for point in points
    ]
    return as_results(rows, rounds, together=TOGETHER)


if __name__ == "__main__":
    main()
