"""Perplexity: exact whatever the buckets and batches, and of real tokens alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.errors import UserError
from robustjax.evaluation.perplexity import next_token_losses, perplexity
from robustjax.models import transformer
from tests.attacks.tiny import make_victim

# Of several buckets, among them the text of one token and texts as long as their bucket.
TEXTS = ["a", "word", "word " * 31, "the word number nine is long " * 9, "short " * 3, "Zürich 😀"]


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return make_victim(tiny_tokenizer, head="lm")


whole = jax.jit(transformer.apply, static_argnums=0)


def log_likelihood(model, row):
    """Of a row's tokens after the first, one row at a time, without any padding."""
    ids = jnp.array([row], jnp.int32)
    scores = whole(model.definition, model.params, ids, jnp.ones_like(ids, bool))
    scores = np.asarray(scores, np.float64)[0]
    logprobs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return [logprobs[place, token] for place, token in enumerate(row[1:])]


def test_it_is_the_exponential_of_the_mean_over_all_tokens(model):
    rows = model.tokenizer.encode(TEXTS)
    assert len(rows[0]) == 1 and len({len(row) for row in rows}) > 4
    found = [one for row in rows for one in log_likelihood(model, row)]
    assert perplexity(model, TEXTS) == pytest.approx(np.exp(-np.mean(found)), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_batches_and_order_change_nothing_but_rounding(model, batch_size):
    other = dataclasses.replace(model, batch_size=batch_size)
    assert perplexity(other, TEXTS[::-1]) == pytest.approx(perplexity(model, TEXTS), rel=1e-6)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(model):
    blank = model.params | {"head": {"kernel": jnp.zeros_like(model.params["head"]["kernel"])}}
    found = perplexity(model.with_params(blank), TEXTS)
    assert found == pytest.approx(model.definition.config.vocab, rel=1e-5)


def test_neither_padding_nor_the_first_token_has_a_loss():
    scores = np.zeros((3, 4, 5), np.float32)
    tokens = np.array([[1, 2, 3, 4]] * 3, np.int32)
    mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]], bool)
    scores[0, 2:] = scores[1, 0] = scores[2] = np.linspace(0, 90, 5)  # where nothing is predicted
    found = next_token_losses(jnp.asarray(scores), jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_allclose(found, np.log(5) * np.array([2, 2, 0]), rtol=1e-6)


def test_what_it_cannot_be_asked(model, tiny_tokenizer):
    with pytest.raises(UserError, match="is a classifier, .* load it with head='lm'"):
        perplexity(make_victim(tiny_tokenizer), TEXTS)
    with pytest.raises(UserError, match="a text of at least two tokens, but none of 2 has"):
        perplexity(model, ["a", "b"])
    with pytest.raises(UserError, match="text 1 has 0 tokens"):
        perplexity(model, ["word", ""])
