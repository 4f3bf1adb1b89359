"""Saves a model as a Hugging Face folder that transformers loads."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.models.hf_names import leaf_at, slots
from robustjax.models.safetensors_file import open_safetensors, write_safetensors
from robustjax.models.transformer import Definition, Params

DEFAULT_SHARD_BYTES = 5_000_000_000

Shard = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and type of each tensor of a file, in order."""


def save_hugging_face(
    folder: Path,
    definition: Definition,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Writes `config.json`, the weights in their own type, and the tokenizer.

    One process only; it holds one tensor at a time besides the model. A file appears under its name
    when it is whole, and one that is there already is kept if it holds these weights.

    Args:
        folder: made if it is not there.
        definition: the model.
        params: its weights.
        tokenizer: its tokenizer, whose padding id also goes into `config.json`: transformers needs
            it to find the last real token.
        max_shard_bytes: no file gets more than that, unless one tensor is larger.
        tick: called after each tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = slots(definition)
    leaves = {name: leaf_at(params, slot.path) for name, slot in places.items()}
    sizes = {name: (slot.shape, np.dtype(leaves[name].dtype)) for name, slot in places.items()}

    def value_of(name: str) -> np.ndarray:
        tick()
        return places[name].to_hugging_face(leaves[name])

    write_shards(folder, sizes, value_of, max_shard_bytes)
    _write_json(folder / "config.json", _config(definition, params, tokenizer))
    if tokenizer is not None:
        tokenizer.save(folder)


def write_shards(
    folder: Path,
    tensors: Shard,
    value_of: Callable[[str], np.ndarray],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes tensors as one file, or as several with their index; one tensor is held at a time."""
    shards: list[Shard] = [{}]
    room = max_shard_bytes
    for name, (shape, dtype) in tensors.items():
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > room and shards[-1]:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = (shape, dtype)
        room -= num_bytes
    files = dict(zip(_file_names(len(shards)), shards, strict=True))
    for file_name, shard in files.items():
        _write_shard(folder / file_name, shard, value_of)
    if len(files) > 1:
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values())
        weight_map = {name: file_name for file_name, shard in files.items() for name in shard}
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )


def _write_shard(path: Path, shard: Shard, value_of: Callable[[str], np.ndarray]) -> None:
    if path.is_file() and _holds(path, shard, value_of):
        return
    partial = path.with_name(f"{path.name}.partial")
    write_safetensors(partial, shard, value_of)
    partial.replace(path)


def _holds(path: Path, shard: Shard, value_of: Callable[[str], np.ndarray]) -> bool:
    """Whether a file of an interrupted save holds exactly these weights."""
    try:
        file = open_safetensors(path)
    except UserError:
        return False

    def same(name: str) -> bool:
        there, here = file.read(name), value_of(name)
        return there.dtype == here.dtype and there.tobytes() == here.tobytes()

    return list(file.tensors) == list(shard) and all(map(same, shard))


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _config(definition: Definition, params: Params, tokenizer: Tokenizer | None) -> dict[str, Any]:
    content = definition.port.config_to_hugging_face(definition.config)
    content["architectures"] = [content["architectures"][definition.head]]
    content["torch_dtype"] = str(params["embed"]["embedding"].dtype)
    if tokenizer is not None:
        content |= {"pad_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.eos_id}
    if definition.head == "classifier":
        labels = [f"LABEL_{index}" for index in range(definition.num_classes)]
        content |= {
            "id2label": {str(index): label for index, label in enumerate(labels)},
            "label2id": {label: index for index, label in enumerate(labels)},
        }
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
