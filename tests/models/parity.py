"""How far a model is from PyTorch's on the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.models import transformer
from tests.models.tiny import jit, make_tokens, relative_error, seeded


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

    def combined(x, params):
        hidden = transformer.forward(
            definition, params, x[:, None], positions, mask[:, None], read=read
        )
        out = transformer.project(definition, params, hidden[:, 0])
        return (out * jnp.reshape(weights, out.shape)).sum()

    return jit(jax.grad(combined), static_argnums=())(x, params)


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
        "gradients": (
            slopes(definition, params, tokens, mask, weights),
            twin.slopes(tokens, mask, weights),
        ),
    }
    return {name: relative_error(*map(at_real, pair)) for name, pair in pairs.items()}


def realistic_params(definition):
    """Weights like a trained model's in size: larger ones in a deep stack only measure chaos."""
    size = min(0.05, 1.4 / definition.config.width**0.5)
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        values = generator.standard_normal(leaf.shape, np.float32)
        values *= size
        return jnp.asarray(values + (path[-1].key == "scale"))

    shapes = transformer.abstract_params(definition)
    return jax.tree_util.tree_map_with_path(draw, shapes)
