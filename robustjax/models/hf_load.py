"""Loads a Hugging Face folder onto a mesh, tensor by tensor.

At any time a process holds its own shards and one tensor: stacked layers are filled in place. Every
tensor is accounted for: it is a weight, or it is on the port's list of buffers, or it is an error.
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.models.architectures import port_of_model_type
from robustjax.models.classifier_head import fresh_head
from robustjax.models.hf_names import Slot, head_name, leaf_at, slots
from robustjax.models.port import ModelConfig
from robustjax.models.safetensors_file import SafetensorsFile, open_safetensors
from robustjax.models.transformer import Definition, Params
from robustjax.runtime.mesh import AxisRules, tree_shardings

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

_log = logging.getLogger(__name__)


def read_hugging_face_config(folder: Path) -> ModelConfig:
    """The shape of the model in a folder.

    Raises:
        UserError: there is no `config.json`, or it is of a model that there is no port for.
    """
    content = _read_json(folder / "config.json")
    return port_of_model_type(str(content.get("model_type"))).config_from_hugging_face(content)


def load_hugging_face(
    folder: Path,
    definition: Definition,
    mesh: Mesh,
    rules: AxisRules,
    *,
    seed: int = 0,
    strict: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Params:
    """Loads the weights in a folder straight into their shardings.

    Tensors may be of different types; each is converted to `definition.numerics.param_dtype`.

    Args:
        folder: with `model.safetensors`, or several files and their index.
        definition: the model wanted; its config is usually `read_hugging_face_config(folder)`.
        mesh: the devices.
        rules: how named axes are split over the mesh.
        seed: of a fresh classifier head, where the folder holds a base model; it is warned about.
        strict: refuses a folder without that head instead, or with another head in its place.
        tick: called after each tensor.

    Raises:
        UserError: a file is damaged, or a tensor is missing, extra, doubled or of the wrong shape.
    """
    wanted = slots(definition)
    found = name_tensors(definition, find_tensors(folder))
    is_fresh_head = _match(folder, definition, wanted, found, strict=strict)
    for name, slot in wanted.items():
        if name in found:
            _check_tensor(found[name], slot)

    shapes = transformer.abstract_params(definition)
    shardings = tree_shardings(mesh, rules, transformer.logical_axes(definition), like=shapes)
    params = jax.tree.map(lambda _: None, shapes)
    for path, tensors in _by_leaf(wanted).items():
        shape, sharding = leaf_at(shapes, path), leaf_at(shardings, path)
        if path == ("head", "kernel") and is_fresh_head:
            leaf = fresh_head(shape, sharding, seed)
        else:
            leaf = _load_leaf(shape, sharding, {found[name]: slot for name, slot in tensors}, tick)
        leaf_at(params, path[:-1])[path[-1]] = leaf
    return params


class Tensor:
    """A tensor in a file: read when asked."""

    def __init__(self, file: SafetensorsFile, name: str):
        self.file, self.name = file, name
        self.shape = file.tensors[name].shape

    def read(self) -> np.ndarray:
        """Reads it, with its own type."""
        return self.file.read(self.name)


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, by name, from one file or from several with an index.

    Raises:
        UserError: there are none, a file is damaged, or index and files disagree.
    """
    if not (folder / _INDEX).is_file():
        if not (folder / _SINGLE).is_file():
            raise UserError(_no_weights(folder))
        file = open_safetensors(folder / _SINGLE)
        return {name: Tensor(file, name) for name in file.tensors}
    index = _read_json(folder / _INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{folder / _INDEX} has no weight_map; fetch it again")
    tensors: dict[str, Tensor] = {}
    for file_name in sorted(set(index.values())):
        if not (folder / file_name).is_file():
            raise UserError(f"{folder / _INDEX} names {file_name}, which is not there; fetch it")
        file = open_safetensors(folder / file_name)
        for name in file.tensors:
            if name in tensors:
                raise UserError(
                    f"{folder}: tensor {name} is in {tensors[name].file.path.name} and in "
                    f"{file_name}; fetch or save the model again"
                )
            tensors[name] = Tensor(file, name)
    for name in sorted(index.keys() | tensors.keys()):
        there = tensors[name].file.path.name if name in tensors else "no file"
        if index.get(name) != there:
            said = index.get(name, "no file")
            raise UserError(
                f"{folder / _INDEX}: tensor {name} should be in {said}, but is in {there}; "
                "fetch the index again"
            )
    return tensors


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return (
            f"{folder} holds weights as .bin or .pt only, which can run code when read; make a "
            f"folder without them: robustjax convert --allow_torch_bin --from={folder} --to=FOLDER"
        )
    return f"{folder} holds no model.safetensors; give the folder of a Hugging Face model"


def name_tensors(definition: Definition, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives the names that they have in a model with a head to tensors saved without any head."""
    prefix = definition.port.names.prefix
    if any(name.startswith(prefix) for name in found):
        return found
    heads = (definition.port.names.lm_head, definition.port.names.classifier_head)
    return {name if name in heads else prefix + name: tensor for name, tensor in found.items()}


def classes_of_head(folder: Path, definition: Definition) -> int | None:
    """Classes of the classifier head in a folder; None if, like a base model, it has none.

    Raises:
        UserError: there are no weights, or a file is damaged.
    """
    head = find_tensors(folder).get(definition.port.names.classifier_head)
    return None if head is None else head.shape[0]


def has_lm_head(folder: Path, definition: Definition) -> bool:
    """Whether a folder holds all that a language model needs; a tied head needs no weights.

    Raises:
        UserError: there are no weights, or a file is damaged.
    """
    name = head_name(definition)
    return name not in slots(definition) or name in find_tensors(folder)


def _match(
    folder: Path,
    definition: Definition,
    wanted: Mapping[str, Slot],
    found: Mapping[str, Tensor],
    *,
    strict: bool,
) -> bool:
    """Accounts for every tensor; returns whether the head has to be drawn."""
    names, head = definition.port.names, head_name(definition)
    for name in wanted:
        if name not in found and (name != head or definition.head == "lm"):
            raise UserError(
                f"{folder}: tensor {name} of shape {list(wanted[name].shape)} is missing"
                + ("; load the model as a classifier" if name == head else "; fetch it again")
            )
    extra = [name for name in found if name not in wanted and not name.endswith(names.ignored)]
    if definition.head == "lm" and names.lm_head in extra:  # tied: the table saved twice
        _check_tied(folder, found[names.lm_head], found[_embedding_name(definition)])
        extra.remove(names.lm_head)
    is_fresh = head not in found and head in wanted
    replaced = names.lm_head in extra and definition.head == "classifier" and not strict
    if replaced:
        extra.remove(names.lm_head)
    if is_fresh and strict:
        raise UserError(
            f"{folder}: the classifier head {head} of shape {list(wanted[head].shape)} is missing; "
            "without strict it is drawn afresh"
        )
    if extra:
        shapes = ", ".join(f"{name} of shape {list(found[name].shape)}" for name in extra[:3])
        more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        raise UserError(f"{folder}: no weights of this model: {shapes}{more}; check config.json")
    if is_fresh:
        _log.warning(
            "%s holds no classifier head%s: it is drawn afresh and has to be trained",
            folder,
            f" ({names.lm_head} is left out)" if replaced else "",
        )
    return is_fresh


def _embedding_name(definition: Definition) -> str:
    names = definition.port.names
    return names.prefix + next(
        name for name, path in names.trunk.items() if path == ("embed", "embedding")
    )


def _check_tied(folder: Path, head: Tensor, table: Tensor) -> None:
    if head.shape != table.shape or not np.array_equal(head.read(), table.read()):
        raise UserError(
            f"{folder}: {head.name} differs from {table.name}, though config.json ties them; set "
            "tie_word_embeddings to false"
        )


def _check_tensor(tensor: Tensor, slot: Slot) -> None:
    if tensor.shape != slot.shape:
        raise UserError(
            f"{tensor.file.path}: tensor {tensor.name} has shape {list(tensor.shape)}, expected "
            f"{list(slot.shape)}; config.json (or the number of classes) is another model's"
        )
    kind = tensor.file.tensors[tensor.name].dtype_name
    if kind not in ("F64", "F32", "F16", "BF16"):
        raise UserError(
            f"{tensor.file.path}: tensor {tensor.name} has type {kind}; weights have to be F64, "
            "F32, F16 or BF16, so take a model that is not quantised"
        )


def _by_leaf(wanted: Mapping[str, Slot]) -> dict[tuple[str, ...], list[tuple[str, Slot]]]:
    leaves: dict[tuple[str, ...], list[tuple[str, Slot]]] = {}
    for name, slot in wanted.items():
        leaves.setdefault(slot.path, []).append((name, slot))
    return leaves


def _load_leaf(
    shape: jax.ShapeDtypeStruct,
    sharding: NamedSharding,
    tensors: Mapping[Tensor, Slot],
    tick: Callable[[], None],
) -> jax.Array:
    """One weight: a tensor, or the stack of a tensor of every layer."""

    def put(tensor: Tensor, slot: Slot, target: NamedSharding) -> jax.Array:
        host = slot.to_ours(tensor.read()).astype(shape.dtype, copy=False)
        tick()
        return jax.make_array_from_callback(host.shape, target, lambda index: host[index])

    if all(slot.layer is None for slot in tensors.values()):
        ((tensor, slot),) = tensors.items()
        return put(tensor, slot, sharding)
    one_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    zeros = functools.partial(jnp.zeros, shape.shape, shape.dtype)
    stack = jax.jit(zeros, out_shardings=sharding)()
    fill = jax.jit(_set_layer, donate_argnums=0, out_shardings=sharding)
    for tensor, slot in tensors.items():
        stack = fill(stack, put(tensor, slot, one_layer), slot.layer)
    return stack


def _set_layer(stack: jax.Array, weight: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, weight, layer, 0)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read; give the folder of a Hugging Face model"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold a mapping; fetch it again")
    return content
