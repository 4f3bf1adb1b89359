"""Adafactor and AdamW against slow references written from their definitions; learning rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax.errors import UserError
from robustjax.training.optimizer import (
    FactoredMoment,
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
    scale_by_adafactor,
)

SHAPES = {
    "matrix": (5, 3),
    "head": (7, 2),
    "row": (1, 4),
    "vector": (6,),
    "scalar": (),
    "cube": (2, 3, 4),
}


class SlowAdafactor:
    """Adafactor of one tensor in float64, one loop per index: no broadcasting to get wrong."""

    def __init__(self, value):
        self.value = np.array(value, np.float64)
        self.step = 0
        self.whole = np.zeros(self.value.shape)
        self.row = np.zeros(self.value.shape[:-1])
        self.column = np.zeros(self.value.shape[:-2] + self.value.shape[-1:])

    def update(self, gradient, learning_rate, weight_decay=0.0):
        gradient = np.array(gradient, np.float64)
        self.step += 1
        keep = 1 - self.step**-0.8
        square = gradient**2 + 1e-30
        update = np.zeros(gradient.shape)
        if gradient.ndim < 2:
            self.whole = keep * self.whole + (1 - keep) * square
            update = gradient / np.sqrt(self.whole)
        else:
            for place in np.ndindex(gradient.shape[:-2]):
                matrix = square[place]
                for i in range(matrix.shape[0]):
                    self.row[(*place, i)] *= keep
                    self.row[(*place, i)] += (1 - keep) * matrix[i, :].sum() / matrix.shape[1]
                for j in range(matrix.shape[1]):
                    self.column[(*place, j)] *= keep
                    self.column[(*place, j)] += (1 - keep) * matrix[:, j].sum() / matrix.shape[0]
                mean = self.row[place].mean()
                for i, j in np.ndindex(matrix.shape):
                    v = self.row[(*place, i)] * self.column[(*place, j)] / mean
                    update[(*place, i, j)] = gradient[(*place, i, j)] / np.sqrt(v)
        rms = np.sqrt((update**2).mean())
        update = update / max(1.0, rms / 1.0)
        self.value = self.value * (1 - learning_rate * weight_decay) - learning_rate * update


def _random_tree(seed, shapes, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }


def _gradients(step, shapes):
    # Sizes that change from step to step make the clipping and the growing memory bite.
    scale = [1.0, 0.1, 30.0, 1e-6, 2.0, 1.0][step % 6]
    return _random_tree(100 + step, shapes, scale)


def _run(config, params, gradients, num_steps, stacked=()):
    optimizer = make_optimizer(config, frozenset(stacked))
    rate = learning_rate_schedule(config, num_steps)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(num_steps):
        updates, state = update(gradients(step), state, params, learning_rate=rate(step))
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adafactor_equals_the_slow_reference(weight_decay):
    config = OptimizerConfig("adafactor", 0.01, schedule="linear", weight_decay=weight_decay)
    start = _random_tree(0, SHAPES)
    params, _ = _run(config, start, lambda step: _gradients(step, SHAPES), num_steps=12)
    for name in SHAPES:
        slow = SlowAdafactor(start[name])
        for step in range(12):
            slow.update(_gradients(step, SHAPES)[name], 0.01 * (1 - step / 12), weight_decay)
        moved = np.abs(slow.value - np.asarray(start[name], np.float64)).max()
        assert moved > 0.005
        np.testing.assert_allclose(params[name], slow.value, rtol=0, atol=2e-6, err_msg=name)


def test_stacked_layers_train_as_layers_by_themselves():
    layer = {"kernel": (4, 6), "bias": (5,)}
    layers = [_random_tree(seed, layer) for seed in range(3)]

    def layer_gradients(step, index):  # of very different sizes, so that a shared clip would show
        return jax.tree.map(lambda g: g * 10.0**index, _random_tree(50 * step + index, layer))

    def stack(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    config = OptimizerConfig("adafactor", 0.01)
    stacked, _ = _run(
        config,
        {"blocks": {"mlp": stack(layers)}, "head": layers[0]["kernel"]},
        lambda step: {
            "blocks": {"mlp": stack([layer_gradients(step, index) for index in range(3)])},
            "head": layer_gradients(step, 0)["kernel"],
        },
        num_steps=5,
        stacked={"blocks"},
    )
    for index in range(3):
        alone, _ = _run(
            config, layers[index], lambda step, index=index: layer_gradients(step, index), 5
        )
        for name in layer:
            got = stacked["blocks"]["mlp"][name][index]
            np.testing.assert_allclose(got, alone[name], rtol=0, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(
        stacked["head"], stacked["blocks"]["mlp"]["kernel"][0], rtol=0, atol=1e-7
    )


def test_the_first_update_has_rms_one_or_less():
    gradients = _gradients(2, SHAPES)
    optimizer = scale_by_adafactor()
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(gradients))
    for name, update in updates.items():
        assert float(jnp.sqrt(jnp.mean(update**2))) <= 1 + 1e-6, name
    np.testing.assert_allclose(updates["vector"], jnp.sign(gradients["vector"]), atol=1e-6)


def test_memory_is_that_of_rows_and_columns():
    params = {"kernel": jnp.zeros((400, 300)), "head": jnp.zeros((300, 2)), "bias": jnp.zeros(7)}
    moments = scale_by_adafactor().init(params).moments
    assert isinstance(moments["kernel"], FactoredMoment)
    assert jax.tree.map(jnp.shape, moments) == {
        "kernel": FactoredMoment((400,), (300,)),
        "head": FactoredMoment((300,), (2,)),
        "bias": (7,),
    }
    stacked = scale_by_adafactor({"blocks"}).init({"blocks": {"bias": jnp.zeros((3, 7))}}).moments
    assert jnp.shape(stacked["blocks"]["bias"]) == (3, 7)


def test_bfloat16_gradients_are_handled_in_float32():
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    gradients = {"w": _random_tree(0, {"w": (4, 4)})["w"].astype(jnp.bfloat16)}
    optimizer = scale_by_adafactor()
    updates, state = optimizer.update(gradients, optimizer.init(params))
    wide = {"w": gradients["w"].astype(jnp.float32)}
    expected, _ = optimizer.update(wide, optimizer.init(wide))
    assert updates["w"].dtype == state.moments["w"].row.dtype == jnp.float32
    np.testing.assert_array_equal(updates["w"], expected["w"])
    assert optax.apply_updates(params, updates)["w"].dtype == jnp.bfloat16


def test_zero_and_tiny_gradients_stay_finite():
    for scale in (0.0, 1e-18):
        gradients = _random_tree(0, SHAPES, scale)
        optimizer = scale_by_adafactor()
        update = jax.jit(optimizer.update)
        _, state = update(gradients, optimizer.init(gradients))
        updates, _ = update(gradients, state)
        assert all(bool(jnp.isfinite(update).all()) for update in updates.values())


def test_adamw_equals_its_definition():
    config = OptimizerConfig("adamw", 0.01, weight_decay=0.05)
    shapes = {"w": (3, 4)}
    start = _random_tree(0, shapes)
    params, _ = _run(config, start, lambda step: _gradients(step, shapes), num_steps=8)
    value, first, second = np.asarray(start["w"], np.float64), 0.0, 0.0
    for step in range(8):
        gradient = np.asarray(_gradients(step, shapes)["w"], np.float64)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        update = first / (1 - 0.9 ** (step + 1))
        update /= np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        value = value * (1 - 0.01 * 0.05) - 0.01 * update
    np.testing.assert_allclose(params["w"], value, rtol=0, atol=1e-6)


def _rates(num_steps, **fields):
    rate = learning_rate_schedule(OptimizerConfig(learning_rate=0.5, **fields), num_steps)
    return [round(float(rate(step)), 6) for step in range(num_steps + 1)]


def test_learning_rates():
    assert _rates(4) == [0.5] * 5
    assert _rates(4, schedule="linear") == [0.5, 0.375, 0.25, 0.125, 0.0]
    assert _rates(4, schedule="cosine") == [0.5, 0.426777, 0.25, 0.073223, 0.0]
    assert _rates(6, schedule="linear", warmup_steps=2) == [0.25, 0.5, 0.5, 0.375, 0.25, 0.125, 0.0]
    assert _rates(3, warmup_steps=3) == [0.166667, 0.333333, 0.5, 0.5]


def test_the_schedule_reaches_the_optimizer():
    ones = {"w": jnp.ones((3, 3))}
    for name in ("adafactor", "adamw"):
        config = OptimizerConfig(name, 0.5, schedule="linear")
        optimizer, rate = make_optimizer(config), learning_rate_schedule(config, 4)
        state = optimizer.init(ones)
        steps, update = [], jax.jit(optimizer.update)
        for step in range(5):
            updates, state = update(ones, state, ones, learning_rate=rate(step))
            steps.append(-float(updates["w"][0, 0]))
        np.testing.assert_allclose(steps, [0.5, 0.375, 0.25, 0.125, 0.0], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "optimizer.name: 'adam' is unknown"),
        ({"schedule": "step"}, "optimizer.schedule: 'step' is unknown"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate: 0.0"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate: nan"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps: -1"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay: -0.1"),
        ({"beta2": 1.0}, "optimizer.beta2: 1.0"),
        ({"epsilon": 0.0}, "optimizer.epsilon: 0.0"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**fields)


def test_bad_lengths():
    with pytest.raises(UserError, match="0 training steps"):
        learning_rate_schedule(OptimizerConfig(), 0)
    with pytest.raises(UserError, match="warmup_steps: 5 is more than the 4 steps"):
        learning_rate_schedule(OptimizerConfig(warmup_steps=5), 4)
