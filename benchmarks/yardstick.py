"""The machine's own rate, which speeds are compared with: a product of two 4096 x 4096 matrices."""

import statistics
import time
from collections.abc import Callable

SIZE = 4096


def matmul_rate(multiply: Callable[[], object]) -> float:
    """FLOPs a second of a product of two float32 matrices of ``SIZE``: the median of five.

    Args:
        multiply: does it, to the end.
    """
    multiply()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - started)
    return 2 * SIZE**3 / statistics.median(times)


def jax_product() -> Callable[[], object]:
    """The product by jax."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((SIZE, SIZE), jnp.float32)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    return lambda: jax.block_until_ready(product(matrix, matrix))


def torch_product() -> Callable[[], object]:
    """The product by torch."""
    import torch

    matrix = torch.ones(SIZE, SIZE)
    return lambda: matrix @ matrix
