"""Which Hugging Face tensor is which weight of ours, written once for loading and for saving."""

import dataclasses
from typing import Any

import numpy as np

from robustjax.models import transformer
from robustjax.models.transformer import Definition, Params


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one Hugging Face tensor in a parameter tree.

    Attributes:
        path: keys down to the leaf.
        layer: index into the leaf's leading axis, where layers are stacked.
        is_transposed: whether the tensor is the transpose of the weight.
        shape: the tensor's shape.
    """

    path: tuple[str, ...]
    layer: int | None
    is_transposed: bool
    shape: tuple[int, ...]

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor as the weight it holds; a view."""
        return tensor.T if self.is_transposed else tensor

    def to_hugging_face(self, leaf: Any) -> np.ndarray:
        """The tensor that holds this weight, on the host, from the leaf at `path`."""
        weight = np.asarray(leaf if self.layer is None else leaf[self.layer])
        return weight.T if self.is_transposed else weight


def slots(definition: Definition) -> dict[str, Slot]:
    """The place of every tensor that a Hugging Face folder of this model holds."""
    names = definition.port.names
    shapes = transformer.abstract_params(definition)
    places: dict[str, Slot] = {}

    def add(name: str, path: tuple[str, ...], layer: int | None = None) -> None:
        module, weight = path[-2:]
        subtree = leaf_at(shapes, path[:-2])
        if weight not in subtree.get(module, {}):
            return  # a weight that models of this kind may have, and this one has not
        shape = subtree[module][weight].shape[0 if layer is None else 1 :]
        is_kernel = weight == "kernel"
        places[name] = Slot(path, layer, is_kernel, shape[::-1] if is_kernel else shape)

    for name, path in names.trunk.items():
        add(names.prefix + name, path)
    for index in range(definition.config.layers):
        start = names.prefix + names.block_prefix.format(index)
        for name, path in names.block.items():
            if definition.scanned:
                add(start + name, ("blocks", *path), index)
            else:
                add(start + name, ("blocks", transformer.layer_name(index), *path))
    add(head_name(definition), ("head", "kernel"))
    return places


def head_name(definition: Definition) -> str:
    """What Hugging Face calls the weights of the head."""
    names = definition.port.names
    return names.lm_head if definition.head == "lm" else names.classifier_head


def leaf_at(tree: Params, path: tuple[str, ...]) -> Any:
    """The part of a parameter tree below a path."""
    for key in path:
        tree = tree[key]
    return tree
