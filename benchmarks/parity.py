"""How far scaling points are from PyTorch's, on the same random weights, in float32.

python -m benchmarks.parity [POINT ...]

Prints a line of JSON for each (by default all Pythia and Qwen2.5 base models): the largest error
of the first block, of the class scores, and of their gradient with respect to the input embeddings,
each relative to the largest value. Models of more than 1.6 billion weights do not fit beside
PyTorch's in 24 GiB: of those, two layers of full width are compared. Needs torch.
"""

import dataclasses
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from robustjax.models.registry import POINTS, layer_loop, scaling_point
from robustjax.models.transformer import Definition
from tests.models.parity import compare, padded, realistic_params
from tests.models.torch_twin import TorchTwin

MOST_WEIGHTS = 1_600_000_000
FAMILIES = ("pythia", "qwen2.5")


def main() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    names = sys.argv[1:] or [name for name, one in POINTS.items() if one.family in FAMILIES]
    for name in names:
        print(json.dumps(measure(name)), flush=True)


def measure(name: str) -> dict:
    """One scaling point."""
    started = time.perf_counter()
    point = scaling_point(name)
    config = point.config
    if point.classifier_params > MOST_WEIGHTS:  # the vocabulary takes no part in class scores
        config = dataclasses.replace(config, layers=2, vocab=512)
    definition = Definition(config, **layer_loop(point.config))
    params = realistic_params(definition)
    with tempfile.TemporaryDirectory() as folder:
        twin = TorchTwin(Path(folder), definition, params)
        errors = compare(definition, twin, params, *padded("right"))
    return {
        "point": name,
        "layers": f"{config.layers} of {point.config.layers}",
        **{what: float(f"{error:.2g}") for what, error in errors.items()},
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    main()
