"""How fast this device runs a program, measured by running it on zeros."""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks.frame import Program
from robustjax.evaluation.flops import executed_flops
from robustjax.models import transformer
from robustjax.models.transformer import Definition
from robustjax.planning.local import device_memory
from robustjax.training.step import TrainBatch, accumulate_gradients

_RUNS = 3
_SIDE = 2048
"""Rows and columns of the matrices of the yardstick."""


def rate_of(programs: Iterable[Program]) -> float:
    """FLOPs a second of some programs run one after the other, their compilation left out.

    Args:
        programs: with the shapes of their arguments, which are made of zeros.
    """
    total, seconds = 0, 0.0
    for program in programs:
        arguments = jax.tree.map(_zeros, program.arguments)
        run = jax.jit(program.function)
        total += executed_flops(program.function, *program.arguments)
        jax.block_until_ready(run(*arguments))
        seconds += min(_seconds(functools.partial(run, *arguments)) for _ in range(_RUNS))
    return total / seconds


def gradient_program(definition: Definition, rows: tuple[int, int], width: int) -> Program:
    """The gradient of one batch: microbatches of so many rows and tokens."""
    tokens = (*rows, width)
    shapes = ((tokens, np.int32), (tokens, np.bool_), (rows, np.int32), (rows, np.float32))
    arrays: Any = [jax.ShapeDtypeStruct(*one) for one in shapes]
    function = functools.partial(accumulate_gradients, definition)
    return Program(function, (transformer.abstract_params(definition), TrainBatch(*arrays)))


def yardstick() -> float:
    """FLOPs a second of a product of large matrices: what a program reaches at best."""
    side = jax.ShapeDtypeStruct((_SIDE, _SIDE), jnp.float32)
    return rate_of([Program(functools.partial(jnp.matmul, precision="highest"), (side, side))])


def is_small(definition: Definition) -> bool:
    """Whether this device has room to measure a model's programs."""
    weights = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(transformer.abstract_params(definition))
    )
    return 12 * weights < device_memory().budget


def _zeros(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started
