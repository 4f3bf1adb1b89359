"""A training step against a plain torch loop over the Hugging Face model, on the same machine.

python -m benchmarks.train_vs_torch [POINT ...]

The shape of a scaling point with random weights, a classifier, batches of 8 texts of 256 tokens,
float32, Adafactor. Each side runs once a round, in a process of its own, for three rounds. Prints a
line of JSON for each run, then the table, and leaves the figures in
``benchmarks/results/train_vs_torch.json``.
"""

import functools
import sys
import tempfile
from pathlib import Path

from benchmarks.in_turn import compared, measure_in_turn, run
from benchmarks.random_model import write_random_model
from benchmarks.results import Results, as_results, training_table, write_results

SIDES = ("torch", "ours")
NAME = "train_vs_torch"
POINTS = ("pythia-70m",)
ROUNDS, STEPS = 3, 6


def main() -> None:
    results = measure(sys.argv[1:] or POINTS)
    print("\n".join(training_table(results)))
    write_results(NAME, results)


def measure(points: list[str] | tuple[str, ...]) -> Results:
    """Both sides of some scaling points in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        cases = {}
        for point in points:
            folder = Path(scratch) / point
            write_random_model(point, folder, "float32")
            for side in SIDES:
                program = (sys.executable, "-m", "benchmarks.train_case", side)
                cases[f"{point} {side}"] = functools.partial(run, *program, str(folder), str(STEPS))
        runs = measure_in_turn(cases, ROUNDS)
    return as_results([compared(point, runs, SIDES, "seconds_a_step") for point in points], ROUNDS)


if __name__ == "__main__":
    main()
