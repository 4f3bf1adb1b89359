"""How much of a batch is scored at once.

A pass computes a few thousand tokens: enough for its products with weights to be large ones, and
few enough for what lies between two products to stay in a CPU's cache, where that of a whole batch
would go through main memory. It also bounds the memory: where a slot stands before a long text,
each candidate runs all of the text.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from robustjax.models.transformer import Cache

TOKENS = 1 << 12
"""Of a pass, on each of the devices that rows are split over."""


class Pass(NamedTuple):
    """What is scored at once.

    Attributes:
        examples: how many of a batch; divides it.
        candidates: how many of each example; divides them.
        shards: parts that the rows of the batch are split into over devices. A pass takes as many
            examples of each.
    """

    examples: int
    candidates: int
    shards: int = 1


def fitting(examples: int, candidates: int, tail: int, shards: int = 1) -> Pass:
    """A pass of as much as may be computed at once: at least one candidate of one example a shard.

    Args:
        examples: of the batch.
        candidates: of each.
        tail: tokens that each candidate runs.
        shards: see ``Pass``.
    """
    some = _divisor(candidates, TOKENS // tail)
    return Pass(shards * _divisor(examples // shards, TOKENS // (some * tail)), some, shards)


def _divisor(count: int, most: int) -> int:
    """The largest divisor that is not more, or 1."""
    return next(size for size in range(max(min(count, most), 1), 0, -1) if count % size == 0)


def by_examples(function: Callable[..., Array], at_once: Pass, *trees: Any) -> Array:
    """Calls a function of examples for some of them at a time.

    Args:
        function: of trees like those given, of fewer examples; its result has them first.
        at_once: how many.
        trees: arrays whose first axis are examples, and caches.

    Returns:
        The results, in the order of the examples.
    """
    size = _size_of(jax.tree.leaves(trees, is_leaf=_is_cache)[0])
    groups = size // at_once.examples
    if groups == 1:
        return function(*trees)

    def of_group(number: Array) -> Array:
        take = functools.partial(_group, number=number, groups=groups, shards=at_once.shards)
        return function(
            *jax.tree.map(
                lambda x: x.of_examples(take) if _is_cache(x) else take(x, 0),
                trees,
                is_leaf=_is_cache,
            )
        )

    found = jax.lax.map(of_group, jnp.arange(groups))  # [groups, examples of a pass, ...]
    of_shard = found.reshape(groups, at_once.shards, -1, *found.shape[2:])
    return jnp.moveaxis(of_shard, 0, 1).reshape(size, *found.shape[2:])


def _is_cache(x: Any) -> bool:
    return isinstance(x, Cache)


def _size_of(leaf: Cache | Array) -> int:
    return leaf.mask.shape[0] if isinstance(leaf, Cache) else leaf.shape[0]


def _group(
    x: Shaped[Array, "..."], axis: int, *, number: Array, groups: int, shards: int
) -> Shaped[Array, "..."]:
    """The examples of one pass, of an array that has examples on an axis.

    They are taken out of each shard, so that none moves to another device.
    """
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    of_shards = x.reshape(*before, shards, groups, size // (shards * groups), *after)
    taken = jax.lax.dynamic_index_in_dim(of_shards, number, axis + 1, keepdims=False)
    return taken.reshape(*before, size // groups, *after)
