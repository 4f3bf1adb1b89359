"""Loading pythia-160m's shape: ours against torch's own loader, on the same files, in turn.

python -m benchmarks.load_time [POINT]

Prints one line of JSON with the median of five runs each, files in the page cache. Torch maps the
files and reads nothing before a weight is used, so it is timed a second time with every weight
copied into memory of its own, which is where ours end. Needs torch.
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

        def theirs_in_memory() -> None:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            for weight in model.parameters():
                weight.data = weight.data.clone()

        loads = {"ours": ours, "torch_mapped": theirs, "torch_in_memory": theirs_in_memory}
        times: dict[str, list[float]] = {name: [] for name in loads}
        for _ in range(5):
            for name, load in loads.items():
                times[name].append(_seconds(load))
    medians = {f"{name}_seconds": round(statistics.median(t), 3) for name, t in times.items()}
    print(json.dumps({"point": point} | medians))


def _seconds(load: Callable[[], None]) -> float:
    started = time.perf_counter()
    load()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
