"""Our Adafactor against the one of transformers, over the same gradients."""

import jax
import numpy as np
import optax
import pytest
import torch
from transformers.optimization import Adafactor

from robustjax.training.optimizer import OptimizerConfig, make_optimizer
from tests.models.tiny import define, make_params, seeded

pytestmark = [pytest.mark.slow, pytest.mark.torch]

STEPS, RATE = 20, 1e-3
SIZES = (1.0, 0.03, 20.0, 1e-5)  # of successive gradients, so that clipping and memory bite


def gradient(name, step, shape):
    return (SIZES[step % 4] * seeded(f"{name}@{step}", shape)).astype(np.float32)


def unrolled_gradients(params, step):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: gradient(jax.tree_util.keystr(path), step, leaf.shape), params
    )


def stack(blocks):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *blocks.values())


def train(params, gradients, stacked, weight_decay):
    config = OptimizerConfig("adafactor", RATE, weight_decay=weight_decay)
    optimizer = make_optimizer(config, frozenset(stacked))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(STEPS):
        updates, state = update(gradients(step), state, params, learning_rate=RATE)
        params = optax.apply_updates(params, updates)
    return params


def train_torch(params, weight_decay):
    """PyTorch keeps a kernel as its transpose; the factors must not care."""

    def turn(path, leaf):
        return np.array(leaf).T if path[-1].key == "kernel" else np.array(leaf)

    turned = jax.tree_util.tree_map_with_path(turn, params)
    leaves, structure = jax.tree.flatten(turned)
    tensors = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in leaves]
    optimizer = Adafactor(
        tensors,
        lr=RATE,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
        weight_decay=weight_decay,
    )
    for step in range(STEPS):
        gradients = jax.tree_util.tree_map_with_path(turn, unrolled_gradients(params, step))
        for tensor, value in zip(tensors, jax.tree.leaves(gradients), strict=True):
            tensor.grad = torch.tensor(value)
        optimizer.step()
    result = jax.tree.unflatten(structure, [tensor.detach().numpy() for tensor in tensors])
    return jax.tree_util.tree_map_with_path(turn, result)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adafactor_over_twenty_steps(weight_decay):
    start = make_params(define("neox"))
    expected = train_torch(start, weight_decay)
    unrolled = train(start, lambda step: unrolled_gradients(start, step), (), weight_decay)
    scanned = train(
        start | {"blocks": stack(start["blocks"])},
        lambda step: (g := unrolled_gradients(start, step)) | {"blocks": stack(g["blocks"])},
        {"blocks"},
        weight_decay,
    )
    moved = largest_difference(expected, start)
    assert min(jax.tree.leaves(moved)) > 2 * RATE
    stacked = expected | {"blocks": stack(expected["blocks"])}
    for got, wanted in ((unrolled, expected), (scanned, stacked)):
        assert max(jax.tree.leaves(largest_difference(got, wanted))) <= 0.01 * RATE


def largest_difference(ours, theirs):
    return jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), ours, theirs)
