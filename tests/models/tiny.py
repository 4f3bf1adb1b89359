"""Tiny models of every family, with weights that do not depend on jax's random numbers.

Weights are far larger than trained ones: at the usual initial scale a wrong GELU or a wrong rotary
base moves the scores by less than any sensible tolerance, and no test would notice. The epsilon of
the norms is large for the same reason.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.models import transformer
from robustjax.models.gpt_neox import GPTNeoXConfig
from robustjax.models.qwen2 import Qwen2Config, RotaryScaling
from robustjax.models.transformer import Definition, join_layers, layer_name

VOCAB = 96

jit = functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
"""`jax.jit` of a function of a definition; compiling is what takes these tests their time."""

CONFIGS = {
    "neox": GPTNeoXConfig(
        vocab=VOCAB,
        width=32,
        layers=3,
        heads=4,
        hidden=80,
        context=64,
        rotary_fraction=0.5,
        norm_epsilon=0.01,
    ),
    "neox-sequential": GPTNeoXConfig(
        vocab=VOCAB,
        width=32,
        layers=3,
        heads=2,
        hidden=80,
        context=64,
        rotary_fraction=1.0,
        parallel_residual=False,
        norm_epsilon=0.01,
    ),
    "qwen2": Qwen2Config(
        vocab=VOCAB,
        width=32,
        layers=3,
        heads=4,
        key_value_heads=2,
        head_width=8,
        hidden=48,
        context=64,
        rotary_theta=10_000.0,
        norm_epsilon=0.01,
        is_tied=True,
    ),
    "llama": Qwen2Config(
        vocab=VOCAB,
        width=32,
        layers=3,
        heads=4,
        key_value_heads=1,
        head_width=12,
        hidden=48,
        context=64,
        rotary_theta=10_000.0,
        rotary_scaling=RotaryScaling(4.0, low_factor=1.0, high_factor=4.0, original_context=16),
        norm_epsilon=0.01,
        qkv_bias=False,
        model_type="llama",
    ),
}


def seeded(name, shape):
    """Standard normal numbers that only the name and the shape fix (a frozen NumPy stream)."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def tiny_weight(name, shape):
    """A weight: 0.3 x standard normal, around 1 for the scale of a norm.

    Less for kernels of more than 32 inputs, lest wide models be chaotic.
    """
    inputs = shape[0] if name.endswith("kernel") else 1
    size = 0.3 * min(1.0, (32 / inputs) ** 0.5)
    return (size * seeded(name, shape) + name.endswith("scale")).astype(np.float32)


def define(config, **fields):
    """A definition of a config, or of one of `CONFIGS` by its name."""
    return Definition(CONFIGS.get(config, config), **fields)


def make_params(definition):
    """Weights by name, hence the same for scanned and unrolled layers and for both heads."""

    def fill(prefix, tree):
        def one(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return tiny_weight(f"{prefix}{name}", leaf.shape)

        return jax.tree_util.tree_map_with_path(one, tree)

    shapes = transformer.abstract_params(definition)
    trunk = fill("", {name: part for name, part in shapes.items() if name != "blocks"})
    block = jax.eval_shape(lambda params: transformer.layer_params(definition, params, 0), shapes)
    layers = range(definition.config.layers)
    blocks = [fill(f"blocks.{layer_name(i)}.", block) for i in layers]
    return jax.tree.map(jnp.asarray, trunk | {"blocks": join_layers(definition, blocks)})


def make_tokens(name, lengths, width):
    """Right-padded rows of random ids (never 0, the padding), and their mask."""
    mask = np.arange(width)[None] < np.array(lengths)[:, None]
    ids = np.random.RandomState(zlib.crc32(name.encode())).randint(1, VOCAB, mask.shape)
    return jnp.asarray(np.where(mask, ids, 0), jnp.int32), jnp.asarray(mask)


def relative_error(got, expected):
    """Largest difference, relative to the largest expected value."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    scale = np.abs(expected).max()
    assert scale > 1e-3, "nothing to compare with"
    return np.abs(got - expected).max() / scale
