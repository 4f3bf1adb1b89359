"""GCG on pythia-12b from 8 to 256 chips, on paper: the same examples on more and more of them.

python -m benchmarks.strong_scaling

Compiles one iteration (gradient and candidates) for slices of v5e, with weights over 2 and over 4
chips and passes of 32 candidates, or of 16 where those do not fit, and keeps the bounds in
``benchmarks/results/strong_scaling.json``. No TPU is needed.
"""

import dataclasses
import importlib.metadata
import sys
from typing import Any

from robustjax.planning.environment import for_tpu_compiler

for_tpu_compiler()

from benchmarks.results import as_results, write_results  # noqa: E402
from configs import attack  # noqa: E402
from robustjax.commands.attack import AttackRunConfig  # noqa: E402
from robustjax.commands.plan_slice import plan_on, slice_of  # noqa: E402
from robustjax.planning.ahead_of_time import TooLargeError  # noqa: E402
from robustjax.planning.run_plan import RunPlan  # noqa: E402
from robustjax.runtime.mesh import MeshConfig  # noqa: E402
from robustjax.settings import build  # noqa: E402

NAME, POINT = "strong_scaling", "pythia-12b"
SLICES = ("v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16")
TENSOR = (2, 4)
CHUNKS = (32, 16)
EXAMPLES, PROMPT_TOKENS = 64, 384
ONCE = ("encode_prefix", "answer")
LIBTPU = importlib.metadata.version("libtpu")


def main() -> None:
    rows: list[dict[str, Any]] = []
    for tensor in TENSOR:
        for topology in SLICES:
            print(f"{topology}, tensor {tensor}", file=sys.stderr, flush=True)
            rows.append(measure(topology, tensor))
    rows.sort(key=lambda row: (row["chips"], row["mesh"]["tensor"]))
    settings = {"point": POINT, "examples": EXAMPLES, "prompt_tokens": PROMPT_TOKENS}
    write_results(NAME, as_results(rows, rounds=1, libtpu=LIBTPU, **settings))


def measure(topology: str, tensor: int) -> dict[str, Any]:
    """One iteration on all examples at once, in the larger pass that fits."""
    for chunk in CHUNKS:
        row = _measure(topology, tensor, chunk)
        if row["fits"]:
            break
    return row


def _measure(topology: str, tensor: int, chunk: int) -> dict[str, Any]:
    values = attack.get_config(f"point={POINT},task=imdb").to_dict()
    config = dataclasses.replace(
        build(AttackRunConfig, values, "config"),
        topology=topology,
        mesh=MeshConfig(-1, 1, tensor),
        num_examples=EXAMPLES,
    )
    search = dataclasses.replace(config.search, batch_size=EXAMPLES)
    one = dataclasses.replace(config.attack, num_iterations=1, candidate_chunk=chunk)
    config = dataclasses.replace(config, search=search, attack=one)
    chosen = slice_of(config)
    row: dict[str, Any] = {"topology": topology, "chips": chosen.chips, "candidate_chunk": chunk}
    mesh = {"data": chosen.chips // tensor, "fsdp": 1, "tensor": tensor}
    try:
        plan = plan_on(config, chosen, PROMPT_TOKENS, left_out=ONCE)
    except TooLargeError:
        return row | {"mesh": mesh, "fits": False, "seconds": None}
    return row | {"mesh": mesh} | _bounds(plan)


def _bounds(plan: RunPlan) -> dict[str, Any]:
    scoring = next(one for one in plan.programs if one.work.name == "score_replacements")
    bound = scoring.compiled.bound
    return {
        "fits": plan.fits,
        "peak": plan.peak,
        "seconds": sum(one.seconds for one in plan.programs),
        "scoring": dataclasses.asdict(bound),
        "limit": bound.limit,
        "sent": scoring.compiled.costs.sent,
        "seconds_compile": round(sum(one.compiled.seconds_compile for one in plan.programs), 1),
    }


if __name__ == "__main__":
    main()
