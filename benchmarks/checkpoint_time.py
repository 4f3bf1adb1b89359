"""How long a training run waits for a checkpoint, and how long the checkpoint takes to be written.

python -m benchmarks.checkpoint_time [POINT]

Prints one line of JSON: the size of a training state (by default of pythia-160m with Adafactor) and
medians of five saves. What is written between the two times is written while training goes on.
"""

import json
import statistics
import sys
import tempfile
import time

import jax

from robustjax.data.tokens import train_byte_bpe
from robustjax.models.registry import layer_loop, scaling_point
from robustjax.models.transformer import Definition
from robustjax.models.victim import Victim, init_params
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.training.loop import TrainConfig, start


def main() -> None:
    point = scaling_point(sys.argv[1] if len(sys.argv) > 1 else "pythia-160m")
    definition = Definition(point.config, **layer_loop(point.config))
    mesh, rules = make_mesh(MeshConfig()), AxisRules()
    params = init_params(definition, 0, mesh, rules)
    tokenizer = train_byte_bpe(["some text to learn merges from"], 280)
    victim = Victim(point.name, point.family, definition, params, tokenizer, mesh, rules)
    _, state = start(victim, TrainConfig())
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    waited, written = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        for step in range(6):
            started = time.perf_counter()
            checkpoints.save(step, state, {})
            waited.append(time.perf_counter() - started)
            checkpoints.wait()
            written.append(time.perf_counter() - started)
    result = {
        "point": point.name,
        "state_gb": round(num_bytes / 1e9, 3),
        # The first also compiles.
        "waited_seconds": round(statistics.median(waited[1:]), 3),
        "written_seconds": round(statistics.median(written[1:]), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
