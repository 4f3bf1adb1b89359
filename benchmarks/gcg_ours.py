"""Our side of a comparison.

python -m benchmarks.gcg_ours FOLDER [--classifier] [--batch=N] [--steps=N]

Runs GCG on the case in the folder and prints one line of JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gcg_case import Case
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import SearchConfig, plan, prepare, run_batches
from robustjax.data.prompts import ChunkKind, Example
from robustjax.evaluation.evaluate import ExecutedCost
from robustjax.models.loading import load_victim

KINDS = (ChunkKind.IMMUTABLE, ChunkKind.PERTURBABLE, ChunkKind.IMMUTABLE)
EDGES = (64, 128, 200, 256, 512, 1024)


def main() -> None:
    arguments = sys.argv[1:]
    folder = Path(arguments.pop(0))
    is_classifier = "--classifier" in arguments
    batch = next((int(a[8:]) for a in arguments if a.startswith("--batch=")), 1)
    steps = next((int(a[8:]) for a in arguments if a.startswith("--steps=")), 8)
    case = Case.read(folder)
    victim = load_victim(folder, head="classifier" if is_classifier else "lm")
    examples = [
        Example(number, "", (case.before,), case.after, 0, 1, "", case.target)
        for number in range(batch)
    ]
    attack = GCG(num_iterations=steps + 1)
    prompts, failures = prepare(victim, examples, KINDS, attack, 0)
    assert not failures, failures
    config = SearchConfig(batch_size=batch, edges=EDGES)
    (planned,) = plan(prompts, config)
    times = [time.perf_counter()]
    (done,) = run_batches(
        victim, [planned], attack, 0, config, lambda *_: times.append(time.perf_counter())
    )
    _, run, outcome = done
    # Each iteration waits for the one before, so the last but one is done when the last begins.
    per_step = np.diff(times)[1:]
    seconds = float(np.median(per_step)) / batch
    survivors = int(outcome.num_valid.sum()) / outcome.num_valid.size
    tail = attack.num_tokens + run.batch.after.shape[1]
    blocks = sum(leaf.size for leaf in jax.tree.leaves(victim.params["blocks"]))
    useful = attack.num_candidates * tail * 2 * blocks
    executed = ExecutedCost(attack)(planned, run) / attack.num_iterations
    rate = matmul_rate()
    print(
        json.dumps(
            {
                "milliseconds": round(1000 * seconds, 1),
                "compile_seconds": round(times[1] - times[0] - seconds * batch, 1),
                "peak_resident_gb": round(
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2
                ),
                "survivors": round(survivors, 1),
                "matmul_gflops": round(rate / 1e9, 1),
                "useful_gflops": round(useful / seconds / 1e9, 1),
                "useful_share": round(useful / seconds / rate, 3),
                "executed_gflops": round(executed / seconds / 1e9, 1),
            }
        )
    )


def matmul_rate() -> float:
    """FLOPs a second of a 4096 x 4096 float32 product."""
    matrix = jnp.ones((4096, 4096), jnp.float32)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    jax.block_until_ready(product(matrix, matrix))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        times.append(time.perf_counter() - started)
    return 2 * 4096**3 / float(np.median(times))


if __name__ == "__main__":
    main()
