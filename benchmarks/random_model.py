"""Writes a Hugging Face folder with a scaling point's shape and random weights, tensor by tensor.

python -m benchmarks.random_model pythia-2.8b FOLDER
"""

import json
import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from robustjax.data.tokens import train_byte_bpe
from robustjax.models.hf_names import slots
from robustjax.models.hf_save import write_shards
from robustjax.models.registry import scaling_point
from robustjax.models.transformer import Definition

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def write_random_model(
    point: str, folder: Path, dtype: str = "bfloat16", shard_bytes: int = 2_000_000_000
) -> int:
    """Writes config, a small tokenizer and the shards; returns the bytes of the weights."""
    definition = Definition(scaling_point(point).config, head="lm")
    folder.mkdir(parents=True, exist_ok=True)
    places = slots(definition)
    sizes = {name: (slot.shape, DTYPES[dtype]) for name, slot in places.items()}
    # A block of random numbers, repeated: drawing billions would take longer than converting them.
    block = (0.02 * np.random.default_rng(0).standard_normal(1 << 20)).astype(DTYPES[dtype])
    write_shards(folder, sizes, lambda name: np.resize(block, places[name].shape), shard_bytes)
    config = definition.port.config_to_hugging_face(definition.config)
    config["architectures"] = [config["architectures"]["lm"]]
    (folder / "config.json").write_text(json.dumps(config))
    train_byte_bpe(["some text to learn merges from"], 280).save(folder)
    return sum(math.prod(shape) * one.itemsize for shape, one in sizes.values())


if __name__ == "__main__":
    print(write_random_model(sys.argv[1], Path(sys.argv[2])))
