"""Loading the records of a large evaluation and computing every metric from them.

python -m benchmarks.records_load [--examples=1000] [--iterations=64]

The records are made up: texts of 1,500 characters, ten attack tokens, two classes. Prints a line of
JSON with the size of the file and the median of five loads, each with all metrics.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from robustjax.evaluation.records import (
    AttackRecord,
    IterationRecord,
    read_records,
    summarise,
    write_records,
)

CHARACTERS, REPEATS = 1500, 5
SLOT = " vel-9 caf\u00e9 ipsum (tok) \u4e2d @& dolor"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.records_load")
    parser.add_argument("--examples", default=1000, type=int)
    parser.add_argument("--iterations", default=64, type=int)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "attack_records.jsonl"
        write_records(path, [_made_up(i, given.iterations, rng) for i in range(given.examples)])
        megabytes = path.stat().st_size / 1e6
        seconds = [_load(path) for _ in range(REPEATS)]
    figures = {
        "examples": given.examples,
        "iterations": given.iterations,
        "megabytes": round(megabytes, 1),
        "load_and_metrics_seconds": round(statistics.median(seconds), 2),
    }
    print(json.dumps(figures))


def _made_up(example_id: int, iterations: int, rng: np.random.Generator) -> AttackRecord:
    logits = rng.normal(size=(iterations, 2)).astype(np.float32).tolist()
    steps = [
        IterationRecord(float(np.float32(rng.random())), one[0] > one[1], SLOT, 110, one)
        for one in logits
    ]
    return AttackRecord(
        example_id=example_id,
        label=1,
        target_label=0,
        correct_before=True,
        attacked_text="x" * CHARACTERS + SLOT,
        success=steps[-1].success,
        logits=logits[-1],
        clean_logits=[-2.0, 2.0],
        iterations=steps,
        num_retokenised=0,
        position=1.0,
        seed=0,
        flops_algorithmic=10**15,
        flops_executed=10**14,
        failure=None,
        attack="gcg",
    )


def _load(path: Path) -> float:
    started = time.perf_counter()
    summarise(read_records(path))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
