"""Compute, counted twice.

*Algorithmic*: the convention of Howe et al. 2024 (arXiv 2407.18213), 2 N FLOPs for a token's
forward pass and 4 N for its backward pass, N with embeddings, no credit for caching, padding not
counted.

*Executed*: the dot products of the programs that ran, read from their jaxprs; a scan's body counts
as often as it runs; attention included; padding and filtered candidates included, because they ran.
A program that is split over devices or processes is counted whole, wherever it is counted.

A record is charged one row's share of the programs that its own example needed, so that its count
does not depend on what shares the batch. What else a batch ran is charged to no record: rows that
only fill up a last batch, examples that were broken already, the others where one is scored twice.
Where there are such rows, the sum over records is less than what ran.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

FORWARD, BACKWARD = 2, 4


class Flops(NamedTuple):
    """The two counts of one piece of work."""

    algorithmic: int
    executed: int


def forward_flops(num_params: int, tokens: int) -> int:
    """Algorithmic FLOPs of a forward pass over ``tokens`` real tokens."""
    return FORWARD * num_params * tokens


def training_flops(num_params: int, tokens: int) -> int:
    """Algorithmic FLOPs of a forward and a backward pass over ``tokens`` real tokens."""
    return (FORWARD + BACKWARD) * num_params * tokens


def executed_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of the dot products in a function of arrays (or of their shapes); nothing is run.

    Raises:
        ValueError: for a ``while`` loop, whose length the program does not tell.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_flops(equation)
    inner = [_count(jaxpr) for jaxpr in _jaxprs(params.values())]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":  # its body is what one device does
        sizes = params["mesh"].shape
        return math.prod(sizes[axis] for axis in params["newly_manual_axes"]) * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        raise ValueError("the FLOPs of a while loop cannot be counted; use scan")
    return sum(inner)


def _dot_flops(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _jaxprs(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
