"""Hugging Face folders with tiny models, and what tests ask of them."""

import dataclasses
import json

import jax
from safetensors.numpy import load_file

from robustjax.models.hf_save import save_hugging_face
from robustjax.models.layers import Numerics
from tests.models.tiny import CONFIGS, define, make_params

SHARD = 20_000
TEXTS = ["It rains in the mountains.", "Win a prize"]


def make_hugging_face(folder, tokenizer, family="neox", dtype="float32", context=64, **fields):
    """Writes a folder of several files, with the tokenizer."""
    config = dataclasses.replace(CONFIGS[family], vocab=tokenizer.num_ids, context=context)
    definition = define(config, numerics=Numerics(param_dtype=dtype), **fields)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), make_params(definition))
    save_hugging_face(folder, definition, params, tokenizer, max_shard_bytes=SHARD)
    return folder


def tensors_of(folder):
    """Type, shape and bytes of every tensor."""
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return {name: (str(one.dtype), one.shape, one.tobytes()) for name, one in found.items()}


def record_of(folder):
    """What a conversion says of itself."""
    return json.loads((folder / "conversion.json").read_text())
