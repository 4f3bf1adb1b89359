"""The tiny models against numbers that PyTorch computed (`tests/goldens/make_models.py`)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.models import transformer
from tests.models.tiny import CONFIGS, define, jit, make_params, make_tokens, relative_error, seeded

PATH = Path(__file__).parents[1] / "goldens" / "models.npz"
FAMILIES = tuple(CONFIGS)


@pytest.fixture(scope="module")
def golden():
    with np.load(PATH, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def batch():
    return make_tokens("goldens", (10, 6), 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_next_token_scores(family, golden, batch):
    definition = define(family, head="lm")
    got = jit(transformer.apply)(definition, make_params(definition), *batch)[:, :6]
    assert relative_error(got, golden[f"{family}/lm"]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_class_scores_and_their_gradient(family, golden, batch):
    definition = define(family, scanned=True)
    params = make_params(definition)
    tokens, mask = batch
    weights = jnp.asarray(seeded("slopes", (2, 2)), jnp.float32)

    def combined(x):
        positions = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)[:, None]
        read = transformer.last_real(mask)[:, None, None]
        hidden = transformer.forward(definition, params, x, positions, mask[:, None], read=read)
        scores = transformer.project(definition, params, hidden[:, 0, 0])
        return (scores * weights).sum(), scores

    x = transformer.embed(definition, params, tokens)[:, None]
    slopes, scores = jit(jax.grad(combined, has_aux=True), static_argnums=())(x)
    assert relative_error(scores, golden[f"{family}/classifier"]) < 1e-5
    assert relative_error(slopes[:, 0], golden[f"{family}/slopes"]) < 1e-5


def test_goldens_are_small():
    assert PATH.stat().st_size <= 100_000
