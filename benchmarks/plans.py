"""Every published scaling point on its default slice: does it fit, and how long does it take?

python -m benchmarks.plans [POINT ...]

Compiles the attack (GCG) and the training of each point for the slice that its row in
``configs/points.py`` names, as `robustjax plan` does, and keeps what it finds in
``benchmarks/results/plans.json``; with names, of these points only. No TPU is needed.
"""

import importlib.metadata
import sys
import time
from typing import Any

from robustjax.planning.environment import for_tpu_compiler

for_tpu_compiler()

from benchmarks.results import FOLDER, as_results, read_results, write_results  # noqa: E402
from configs import attack, finetune  # noqa: E402
from configs.points import PUBLISHED_POINTS, ROUNDS  # noqa: E402
from robustjax.commands.attack import AttackRunConfig  # noqa: E402
from robustjax.commands.finetune import FinetuneRunConfig  # noqa: E402
from robustjax.commands.plan_slice import plan_on, slice_of  # noqa: E402
from robustjax.settings import build  # noqa: E402

NAME = "plans"
LIBTPU = importlib.metadata.version("libtpu")


def main(points: list[str]) -> None:
    rows = {row["point"]: row for row in _kept()}
    for point in points or PUBLISHED_POINTS:
        started = time.perf_counter()
        rows[point] = measure(point)
        ordered = [rows[name] for name in PUBLISHED_POINTS if name in rows]
        write_results(NAME, as_results(ordered, rounds=1, libtpu=LIBTPU))
        print(f"{point}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def measure(point: str) -> dict[str, Any]:
    """The plans of a point's attack and of its training."""
    argument = f"point={point},task=imdb"
    configs = {
        "attack": build(AttackRunConfig, attack.get_config(argument).to_dict(), "config"),
        "training": build(FinetuneRunConfig, finetune.get_config(argument).to_dict(), "config"),
    }
    plans = {}
    for name, config in configs.items():
        # What answers whole texts is compiled once, with the training.
        left_out = ("answer",) if name == "attack" else ()
        plan = plan_on(config, slice_of(config), tick=_say, left_out=left_out)
        plans[name] = plan.to_json()
    return {"point": point, "rounds": ROUNDS[point], **_settings(point), **plans}


def _settings(point: str) -> dict[str, Any]:
    row = PUBLISHED_POINTS[point]
    return {
        "compute_dtype": row["numerics"]["compute_dtype"],
        "batch_size": row["batch_size"],
        "candidate_chunk": row["candidate_chunk"],
        "microbatch_size": row["microbatch_size"],
    }


def _kept() -> list[dict[str, Any]]:
    return read_results(NAME)["rows"] if (FOLDER / f"{NAME}.json").exists() else []


def _say(name: str) -> None:
    print(f"compiling {name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
