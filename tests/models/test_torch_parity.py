"""Our models against PyTorch's on the same weights: scores, gradients, and mutations that show."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.models import gpt_neox, layers, qwen2, transformer
from robustjax.models.gpt_neox import GPTNeoXConfig
from robustjax.models.qwen2 import Qwen2Config
from robustjax.models.registry import POINTS
from robustjax.models.transformer import Definition
from tests.models.tiny import (
    CONFIGS,
    VOCAB,
    define,
    jit,
    make_params,
    make_tokens,
    relative_error,
    seeded,
)
from tests.models.torch_twin import TorchTwin

pytestmark = [pytest.mark.slow, pytest.mark.torch]

MODULE_TOLERANCE, MODEL_TOLERANCE = 1e-5, 1e-4


def neox_with_heads_of(head_width):
    return GPTNeoXConfig(
        vocab=VOCAB, width=2 * head_width, layers=2, heads=2, hidden=64, context=64
    )


SEVEN_TO_ONE = Qwen2Config(
    vocab=VOCAB,
    width=56,
    layers=3,
    heads=7,
    key_value_heads=1,
    head_width=8,
    hidden=48,
    context=64,
    norm_epsilon=0.01,
)
MODELS = CONFIGS | {
    "neox-full-rotary-parallel": dataclasses.replace(CONFIGS["neox"], rotary_fraction=1.0),
    "neox-heads-32": neox_with_heads_of(32),
    "neox-heads-80": neox_with_heads_of(80),
    "neox-heads-128": neox_with_heads_of(128),
    "neox-heads-256": neox_with_heads_of(256),
    "qwen2-7-to-1": SEVEN_TO_ONE,
    "qwen2-untied": dataclasses.replace(CONFIGS["qwen2"], is_tied=False),
    "qwen2-7-to-1-tied": dataclasses.replace(SEVEN_TO_ONE, is_tied=True),
    "llama-unscaled": dataclasses.replace(CONFIGS["llama"], rotary_scaling=None),
    "mistral": dataclasses.replace(
        CONFIGS["llama"], rotary_scaling=None, model_type="mistral", key_value_heads=2
    ),
}


def padded(side):
    tokens, mask = make_tokens("parity", (14, 11, 5), 14)
    if side == "left":
        places = (jnp.arange(14)[None] + mask.sum(1)[:, None]) % 14
        tokens, mask = (jnp.take_along_axis(array, places, 1) for array in (tokens, mask))
    return tokens, mask


def first_block(definition, params, tokens, mask):
    one = dataclasses.replace(definition.config, layers=1)
    weights = transformer.layer_params(definition, params, 0)
    small = dataclasses.replace(definition, config=one, scanned=False)
    params = params | {"blocks": transformer.join_layers(small, [weights])}
    x = transformer.embed(small, params, tokens)[:, None]
    positions = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)[:, None]
    return transformer.forward(small, params, x, positions, mask[:, None])[:, 0]


def slopes(definition, params, tokens, mask, weights):
    """Gradient of sum(weights * scores) with respect to the token embeddings."""
    x = transformer.embed(definition, params, tokens)
    positions = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)[:, None]
    read = transformer.last_real(mask)[:, None, None] if definition.head != "lm" else None

    def combined(x):
        hidden = transformer.forward(
            definition, params, x[:, None], positions, mask[:, None], read=read
        )
        out = transformer.project(definition, params, hidden[:, 0])
        return (out * jnp.reshape(weights, out.shape)).sum()

    return jit(jax.grad(combined), static_argnums=())(x)


def compare(definition, twin, params, tokens, mask):
    """Relative errors of the first block, of the scores and of the gradient, at real tokens."""
    real = np.asarray(mask)

    def at_real(array):
        array = np.asarray(array)
        return array[real] if array.shape[:2] == real.shape else array

    our_scores = jit(transformer.apply)(definition, params, tokens, mask)
    weights = seeded("slopes", our_scores.shape).astype(np.float32)
    if definition.head == "lm":
        weights = np.where(real[..., None], weights, 0)
    pairs = {
        "block": (
            jit(first_block)(definition, params, tokens, mask),
            twin.first_block(tokens, mask),
        ),
        "scores": (our_scores, twin.scores(tokens, mask)),
        "slopes": (
            slopes(definition, params, tokens, mask, weights),
            twin.slopes(tokens, mask, weights),
        ),
    }
    return {name: relative_error(*map(at_real, pair)) for name, pair in pairs.items()}


def check(errors):
    assert errors["block"] < MODULE_TOLERANCE
    assert errors["scores"] < MODEL_TOLERANCE
    assert errors["slopes"] < MODEL_TOLERANCE


@pytest.mark.parametrize("head", ["classifier", "lm"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_gradients(name, head, tmp_path):
    definition = define(MODELS[name], head=head, num_classes=3 if "heads" in name else 2)
    params = make_params(definition)
    twin = TorchTwin(tmp_path, definition, params)
    for side in ("left", "right"):
        check(compare(definition, twin, params, *padded(side)))


# Each mutation is a way in which a port could be wrong and still run.


def _config(**fields):
    def mutate(definition, params, monkeypatch):
        return dataclasses.replace(
            definition, config=dataclasses.replace(definition.config, **fields)
        ), params

    return mutate


def _weights(module, weight, change):
    def mutate(definition, params, monkeypatch):
        blocks = {
            name: block | {module: block[module] | {weight: change(block[module][weight])}}
            for name, block in params["blocks"].items()
        }
        return definition, params | {"blocks": blocks}

    return mutate


def _rough_gelu(definition, params, monkeypatch):
    monkeypatch.setattr(gpt_neox, "_gelu", functools.partial(jax.nn.gelu, approximate=True))
    return definition, params


def _gelu_for_silu(definition, params, monkeypatch):
    monkeypatch.setattr(jax.nn, "silu", jax.nn.gelu)
    return definition, params


def _wrong_scale(definition, params, monkeypatch):
    attend = layers.attend

    def scaled(queries, *rest):
        return attend(queries * 1.01, *rest)

    for module in ("robustjax.models.gpt_neox", "robustjax.models.qwen2"):
        monkeypatch.setattr(f"{module}.attend", scaled)
    return definition, params


def _interleaved_rotation(definition, params, monkeypatch):
    def rotate(x, positions, frequencies):
        dims = 2 * len(frequencies)
        order = np.arange(dims).reshape(-1, 2).T.reshape(-1)
        turned = layers.rotate(x[..., :dims][..., order], positions, frequencies)
        return jnp.concatenate([turned[..., np.argsort(order)], x[..., dims:]], -1)

    for module in ("robustjax.models.gpt_neox", "robustjax.models.qwen2"):
        monkeypatch.setattr(f"{module}.rotate", rotate)
    return definition, params


def _heads_shared_in_turn(definition, params, monkeypatch):
    """Query heads 0, 2 on key head 0 instead of 0, 1."""
    change = np.arange(4).reshape(2, 2).T.reshape(-1)

    def swap(kernel):
        return kernel.reshape(32, 4, 8)[:, change].reshape(32, 32)

    return _weights("query", "kernel", swap)(definition, params, monkeypatch)


def _qkv_by_part(kernel):
    """Columns ordered (q|k|v, head) instead of (head, q|k|v)."""
    width, heads = 32, 4
    return kernel.reshape(width, heads, 3, 8).transpose(0, 2, 1, 3).reshape(width, 96)


MUTATIONS = {
    "neox": {
        "rotary base": _config(rotary_theta=20_000.0),
        "rotary share": _config(rotary_fraction=1.0),
        "epsilon": _config(norm_epsilon=1e-5),
        "residual": _config(parallel_residual=False),
        "gelu": _rough_gelu,
        "order of q, k, v": _weights("qkv", "kernel", _qkv_by_part),
        "bias": _weights("attention_out", "bias", jnp.zeros_like),
        "scale": _wrong_scale,
        "rotation": _interleaved_rotation,
    },
    "qwen2": {
        "rotary base": _config(rotary_theta=20_000.0),
        "epsilon": _config(norm_epsilon=1e-6),
        "silu": _gelu_for_silu,
        "key bias": _weights("key", "bias", lambda bias: bias * 1.5),
        "value bias": _weights("value", "bias", jnp.zeros_like),
        "groups": _heads_shared_in_turn,
        "scale": _wrong_scale,
        "rotation": _interleaved_rotation,
    },
    "llama": {
        "rotary scaling": _config(rotary_scaling=None),
        "its factor": _config(rotary_scaling=qwen2.RotaryScaling(8.0, 1.0, 4.0, 16)),
        "its blending": _config(rotary_scaling=qwen2.RotaryScaling(4.0, 1.0, 3.0, 16)),
    },
}


@pytest.mark.parametrize("family", MUTATIONS)
def test_every_mutation_shows(family, tmp_path):
    definition = define(family)
    params = make_params(definition)
    twin = TorchTwin(tmp_path, definition, params)
    check(compare(definition, twin, params, *padded("left")))
    for name, mutate in MUTATIONS[family].items():
        with pytest.MonkeyPatch.context() as monkeypatch:
            jax.clear_caches()
            mutant, weights = mutate(definition, params, monkeypatch)
            errors = compare(mutant, twin, weights, *padded("left"))
        assert errors["block"] > MODULE_TOLERANCE, name
        assert errors["scores"] > MODEL_TOLERANCE, name
        assert errors["slopes"] > MODEL_TOLERANCE, name
    jax.clear_caches()


@pytest.mark.parametrize("name", ["pythia-14m", "pythia-70m", "pythia-160m", "qwen2.5-0.5b"])
def test_real_shapes(name, tmp_path):
    """Weights like a trained model's in size: with deep stacks, 0.3 would only measure chaos."""
    point = POINTS[name]
    definition = Definition(point.config, scanned=point.scanned)
    shapes = transformer.abstract_params(definition)
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        is_scale = path[-1].key == "scale"
        values = generator.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(0.05 * values + is_scale)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    twin = TorchTwin(tmp_path, definition, params)
    check(compare(definition, twin, params, *padded("right")))
