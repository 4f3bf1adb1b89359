"""What an iteration of GCG costs against prefix, candidates, slot, examples and size of the model.

python -m benchmarks.gcg_scaling [--quick]

One thing is varied at a time from a classifier of the shape of pythia-70m, a prefix of 200 tokens,
128 candidates, ten attack tokens and one example. Every case runs once a round, in a process of its
own, for three rounds; prefixes of 60 and of 900 tokens follow one another, since their ratio is
reported. ``benchmarks.gcg_ours`` says what the figures are; they are of one iteration and example.

Prints a line of JSON for each run, then the table, and leaves the figures in
``benchmarks/results/gcg_scaling.json``. ``--quick`` is one round of a few cases of the smallest
point with two iterations, which shows that it works; it leaves nothing.
"""

import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gcg_case import Case, bench_tokenizer, write_case, write_prompt
from benchmarks.in_turn import Figures, measure_in_turn, median_ratio, medians, run
from benchmarks.results import Results, as_results, scaling_table, write_results

NAME = "gcg_scaling"
Varied = tuple[str, int | str]

BASE = "pythia-70m"
PREFIX = 200
SHORT, LONG = ("prefix", 60), ("prefix", 900)
VARIED: tuple[Varied, ...] = (
    *(("prefix", length) for length in (60, 200, 450, 900)),
    *(("candidates", count) for count in (32, 64, 256, 512)),
    *(("tokens", count) for count in (5, 20)),
    *(("batch", count) for count in (4, 16)),
    *(("model", point) for point in ("pythia-14m", "pythia-160m")),
)
ROUNDS, STEPS = 3, 8

QUICK_BASE = "pythia-14m"
QUICK_VARIED: tuple[Varied, ...] = (SHORT, LONG, ("candidates", 64))


def main() -> None:
    if "--quick" in sys.argv:
        results = measure(QUICK_BASE, QUICK_VARIED, rounds=1, steps=2)
        print("\n".join(scaling_table(results)))
        return
    results = measure(BASE, VARIED, ROUNDS, STEPS)
    print("\n".join(scaling_table(results)))
    write_results(NAME, results)


def measure(base: str, varied: Sequence[Varied], rounds: int, steps: int) -> Results:
    """All cases in turn.

    Args:
        varied: what differs from the base, and its value.
        steps: timed iterations.
    """
    tokenizer = bench_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        models: dict[str, Path] = {}
        prompts: dict[int, Case] = {}

        def case(what: str, value: int | str) -> Callable[[], Figures]:
            model = str(value) if what == "model" else base
            length = int(value) if what == "prefix" else PREFIX
            if model not in models:
                models[model] = Path(scratch) / model
                write_case(model, models[model], PREFIX, tokenizer)
            if length not in prompts:
                prompts[length] = write_prompt(models[model], length, tokenizer)
            flags = [] if what in ("model", "prefix") else [f"--{what}={value}"]
            return functools.partial(
                run_case, models[model], prompts[length], f"--steps={steps}", *flags
            )

        # What is compared with one another first, one after the other.
        order = sorted(varied, key=lambda one: one not in (SHORT, LONG))
        runs = measure_in_turn({label(*one): case(*one) for one in order}, rounds)
    short, long = runs[label(*SHORT)], runs[label(*LONG)]
    rows = [
        {"varied": what, "value": value, "measured": medians(found), "runs": found}
        for what, value, found in ((*one, runs[label(*one)]) for one in varied)
    ]
    growth = {
        "of": [SHORT[1], LONG[1]],
        "milliseconds": median_ratio(long, short, "milliseconds"),
        "executed_gflop": median_ratio(long, short, "executed_gflop"),
    }
    return as_results(rows, rounds, base=base, prefix_growth=growth)


def label(what: str, value: int | str) -> str:
    """A case's name."""
    return f"{what} {value}"


def run_case(folder: Path, prompt: Case, *flags: str) -> Figures:
    """One run; the prompt takes the place of that of the run before."""
    prompt.write(folder)
    return run(sys.executable, "-m", "benchmarks.gcg_ours", str(folder), "--classifier", *flags)


if __name__ == "__main__":
    main()
