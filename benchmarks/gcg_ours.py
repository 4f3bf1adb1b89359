"""Our side of a comparison.

python -m benchmarks.gcg_ours FOLDER [--classifier] [--batch=N] [--steps=N] [--candidates=N]
    [--tokens=N]

Runs GCG on the case in the folder and prints one line of JSON. The first iteration, which compiles
and encodes the prefix, is left out of times and of FLOPs:

- ``milliseconds``: median of the later iterations, of one example;
- ``compile_seconds``: by how much the first took longer, compiling and encoding the prefix;
- ``peak_resident_gb``: of the process, up to the end of the search;
- ``matmul_gflops``: the yardstick, a product of two 4096 x 4096 matrices, before the search
  or after it, whichever was faster;
- ``useful_gflops``: candidates x (slot and what follows it) x 2 x weights of the blocks, a second,
  whatever the engine computed of it;
- ``executed_gflops``: dot products of the programs that ran, a second; ``executed_gflop`` is the
  same for one iteration and example;
- ``useful_share``, ``executed_share``: these rates as a part of ``matmul_gflops``.
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.gcg_case import Case
from benchmarks.memory import peak_resident_gb
from benchmarks.yardstick import jax_product, matmul_rate
from robustjax.attacks.frame import BatchRun, PlannedBatch, Seen
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import Attack, SearchConfig, plan, prepare, run_batches
from robustjax.data.prompts import ChunkKind, Example
from robustjax.evaluation.evaluate import ExecutedCost
from robustjax.models.loading import load_victim

KINDS = (ChunkKind.IMMUTABLE, ChunkKind.PERTURBABLE, ChunkKind.IMMUTABLE)


def main() -> None:
    arguments = sys.argv[1:]
    folder = Path(arguments.pop(0))
    is_classifier = "--classifier" in arguments
    given = dict(one[2:].split("=") for one in arguments if "=" in one)
    numbers = {"batch": 1, "steps": 8, "candidates": 128, "tokens": 10}
    numbers |= {name: int(value) for name, value in given.items()}
    batch, steps = numbers["batch"], numbers["steps"]
    rate_before = matmul_rate(jax_product())
    case = Case.read(folder)
    victim = load_victim(folder, head="classifier" if is_classifier else "lm")
    examples = [
        Example(number, "", (case.before,), case.after, 0, 1, "", case.target)
        for number in range(batch)
    ]
    attack = GCG(
        num_iterations=steps + 1,
        num_candidates=numbers["candidates"],
        num_tokens=numbers["tokens"],
    )
    prompts, failures = prepare(victim, examples, KINDS, attack, 0)
    assert not failures, failures
    # No padding, as the other side has none.
    length = len(prompts[0].surrounding.before_ids)
    config = SearchConfig(batch_size=batch, edges=(length, 4 * length))
    (planned,) = plan(prompts, config)
    times = [time.perf_counter()]
    (done,) = run_batches(
        victim, [planned], attack, 0, config, lambda *_: times.append(time.perf_counter())
    )
    _, run, outcome = done
    peak = peak_resident_gb()
    # Each iteration waits for the one before, so the last but one is done when the last begins.
    first, *later = np.diff(times)
    seconds = float(np.median(later)) / batch
    tail = attack.num_tokens + run.batch.after.shape[1]
    blocks = sum(leaf.size for leaf in jax.tree.leaves(victim.params["blocks"]))
    useful = attack.num_candidates * tail * 2 * blocks
    executed = later_iteration_flops(attack, planned, run, outcome.seen)
    rate = max(rate_before, matmul_rate(jax_product()))
    figures = {
        "milliseconds": round(1000 * seconds, 1),
        "compile_seconds": round(first - seconds * batch, 1),
        "peak_resident_gb": round(peak, 2),
        "survivors": round(float(outcome.seen.num_valid[1:].mean()), 1),
        "matmul_gflops": round(rate / 1e9, 1),
        "useful_gflops": round(useful / seconds / 1e9, 1),
        "useful_share": round(useful / seconds / rate, 3),
        "executed_gflop": round(executed / 1e9, 3),
        "executed_gflops": round(executed / seconds / 1e9, 1),
        "executed_share": round(executed / seconds / rate, 3),
    }
    print(json.dumps(figures))


def later_iteration_flops(
    attack: Attack, planned: PlannedBatch, run: BatchRun, seen: Seen
) -> float:
    """Executed FLOPs of one example in a mean iteration after the first.

    The first also encodes the prefix, once for all iterations.
    """
    later: Seen = jax.tree.map(lambda of_iterations: of_iterations[1:], seen)
    return ExecutedCost(attack)(planned, run, later)[0] / len(later.loss)


if __name__ == "__main__":
    main()
