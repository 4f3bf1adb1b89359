"""Writes a Hugging Face folder with a scaling point's shape and random weights, tensor by tensor.

python -m benchmarks.random_model pythia-2.8b FOLDER
"""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from robustjax.data.tokens import train_byte_bpe
from robustjax.models.hf_names import slots
from robustjax.models.registry import scaling_point
from robustjax.models.safetensors_file import write_safetensors
from robustjax.models.transformer import Definition

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def write_random_model(
    point: str, folder: Path, dtype: str = "bfloat16", shard_bytes: int = 2_000_000_000
) -> int:
    """Writes config, a small tokenizer and the shards; returns the bytes of the weights."""
    definition = Definition(scaling_point(point).config, head="lm")
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict] = [{}]
    size = total = 0
    for name, slot in slots(definition).items():
        num_bytes = int(np.prod(slot.shape)) * DTYPES[dtype].itemsize
        if shards[-1] and size + num_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = (slot.shape, DTYPES[dtype])
        size, total = size + num_bytes, total + num_bytes
    # A block of random numbers, repeated: drawing billions would take longer than converting them.
    block = (0.02 * np.random.default_rng(0).standard_normal(1 << 20)).astype(DTYPES[dtype])
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(
            folder / file_name,
            shard,
            lambda name, shard=shard: np.resize(block, shard[name][0]),
        )
        weight_map |= dict.fromkeys(shard, file_name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = definition.port.config_to_hugging_face(definition.config)
    config["architectures"] = [config["architectures"]["lm"]]
    (folder / "config.json").write_text(json.dumps(config))
    train_byte_bpe(["some text to learn merges from"], 280).save(folder)
    return total


if __name__ == "__main__":
    print(write_random_model(sys.argv[1], Path(sys.argv[2])))
