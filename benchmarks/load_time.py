"""Loading pythia-160m's shape: ours against torch's own loader, on the same files, in turn.

python -m benchmarks.load_time [POINT]

Prints one line of JSON with the median of five runs each, files in the page cache. Needs torch.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import torch
import transformers

from benchmarks.random_model import write_random_model
from robustjax.models.loading import load_victim


def main() -> None:
    point = sys.argv[1] if len(sys.argv) > 1 else "pythia-160m"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "hf"
        write_random_model(point, folder, "float32")

        def ours() -> None:
            jax.block_until_ready(load_victim(folder, head="lm").params)

        def theirs() -> None:
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

        times = {"ours": [], "torch": []}
        for _ in range(5):
            for name, load in (("ours", ours), ("torch", theirs)):
                times[name].append(_seconds(load))
    medians = {f"{name}_seconds": round(statistics.median(t), 3) for name, t in times.items()}
    firsts = {f"{name}_first_seconds": round(t[0], 3) for name, t in times.items()}
    print(json.dumps({"point": point} | medians | firsts))


def _seconds(load: Callable[[], None]) -> float:
    started = time.perf_counter()
    load()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
