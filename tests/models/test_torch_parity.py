"""Our models against PyTorch's on the same weights: scores, gradients, and mutations that show."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.models import attention, gpt_neox, layers, qwen2
from robustjax.models.gpt_neox import GPTNeoXConfig
from robustjax.models.qwen2 import Qwen2Config
from robustjax.models.registry import POINTS, layer_loop
from robustjax.models.transformer import Definition
from tests.models.parity import compare, padded, realistic_params
from tests.models.tiny import CONFIGS, VOCAB, define, make_params
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


def check(errors):
    assert errors["block"] < MODULE_TOLERANCE
    assert errors["scores"] < MODEL_TOLERANCE
    assert errors["gradients"] < MODEL_TOLERANCE


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
    attend = attention.attend

    def scaled(queries, *rest, **options):
        return attend(queries * 1.01, *rest, **options)

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
        assert errors["gradients"] > MODEL_TOLERANCE, name
    jax.clear_caches()


@pytest.mark.parametrize("name", ["pythia-14m", "pythia-70m", "pythia-160m", "qwen2.5-0.5b"])
def test_real_shapes(name, tmp_path):
    point = POINTS[name]
    definition = Definition(point.config, **layer_loop(point.config))
    params = realistic_params(definition)
    twin = TorchTwin(tmp_path, definition, params)
    check(compare(definition, twin, params, *padded("right")))
