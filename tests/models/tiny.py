"""Tiny models of every family, with weights that do not depend on jax's random numbers.

Weights are far larger than trained ones: at the usual initial scale a wrong GELU or a wrong rotary
base moves the scores by less than any sensible tolerance, and no test would notice.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.models import transformer
from robustjax.models.gpt_neox import GPTNeoXConfig
from robustjax.models.transformer import Definition, join_layers, layer_name

VOCAB = 96

jit = functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
"""`jax.jit` of a function of a definition; compiling is what takes these tests their time."""

CONFIGS = {
    "neox": GPTNeoXConfig(
        vocab=VOCAB, width=32, layers=3, heads=4, hidden=80, context=64, rotary_fraction=0.5
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
    ),
}


def seeded(name, shape):
    """Standard normal numbers that only the name and the shape fix (a frozen NumPy stream)."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def tiny_weight(name, shape):
    """A weight: 0.3 x standard normal, around 1 for the scale of a norm."""
    return (0.3 * seeded(name, shape) + name.endswith("scale")).astype(np.float32)


def define(family, **fields):
    return Definition(CONFIGS[family], **fields)


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
