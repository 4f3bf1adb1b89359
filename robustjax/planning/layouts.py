"""How the arrays that programs take are laid out on a mesh, for arrays that nobody has yet."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from robustjax.attacks.frame import Inputs, Program, Reader
from robustjax.models.transformer import (
    Cache,
    Definition,
    Params,
    abstract_params,
    cache_axes,
)
from robustjax.models.victim import param_shardings
from robustjax.runtime.mesh import AxisRules, LogicalAxes, named_sharding, replicated


def weights(definition: Definition, mesh: Mesh, rules: AxisRules) -> Params:
    """Shapes of a model's weights, as they are laid out when it is loaded."""
    return jax.tree.map(
        _with, abstract_params(definition), param_shardings(definition, mesh, rules)
    )


def search_inputs(inputs: Inputs, mesh: Mesh, rules: AxisRules) -> Inputs:
    """The inputs of a search's programs, laid out as a search lays them out."""

    def read(reader: Reader) -> Reader:
        params = weights(reader.definition, mesh, rules)
        return Reader(reader.definition, params, _cache(reader.prefix, mesh, rules))

    return inputs._replace(
        victim=read(inputs.victim),
        companion=None if inputs.companion is None else read(inputs.companion),
        batch=jax.tree.map(lambda leaf: _rows(leaf, mesh, rules), inputs.batch),
        forbidden=_with(inputs.forbidden, replicated(mesh)),
    )


def search_program(program: Program, rows: int, mesh: Mesh, rules: AxisRules) -> Program:
    """A program whose arguments are all laid out, those too that another program leaves it.

    Args:
        program: of a search, with arguments of which some are laid out.
        rows: examples of the batch: arrays whose first axis has as many are split over them.
        mesh: the devices.
        rules: how named axes are split over them.
    """

    def place(node: Any) -> Any:
        if isinstance(node, Cache):
            return _cache(node, mesh, rules)
        if not hasattr(node, "shape") or getattr(node, "sharding", None) is not None:
            return node
        if node.shape[:1] == (rows,):
            return _rows(node, mesh, rules)
        return _with(node, replicated(mesh))

    def is_cache(node: Any) -> bool:
        return isinstance(node, Cache)

    return program._replace(arguments=jax.tree.map(place, program.arguments, is_leaf=is_cache))


def batch_rows(shape: tuple[int, ...], dtype: Any, mesh: Mesh, rules: AxisRules) -> Any:
    """An array of tokens or labels whose first axis is the texts of a batch."""
    leaf = jax.ShapeDtypeStruct(shape, np.dtype(dtype))
    return _with(leaf, _sharding(("batch",) + (None,) * (len(shape) - 1), leaf, mesh, rules))


def _cache(cache: Cache, mesh: Mesh, rules: AxisRules) -> Cache:
    def place(leaf: Any) -> Any:
        return _with(leaf, _sharding(cache_axes(leaf.ndim), leaf, mesh, rules))

    keys, values = jax.tree.map(place, (cache.keys, cache.values))
    return Cache(keys, values, _rows(cache.mask, mesh, rules))


def _rows(leaf: Any, mesh: Mesh, rules: AxisRules) -> Any:
    axes = ("examples",) + (None,) * (leaf.ndim - 1)
    return _with(leaf, _sharding(axes, leaf, mesh, rules))


def _sharding(axes: LogicalAxes, leaf: Any, mesh: Mesh, rules: AxisRules) -> NamedSharding:
    return named_sharding(mesh, rules, axes, leaf.shape)


def _with(leaf: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
