"""How well a language model predicts texts: the exponential of its mean loss of a token."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.models.transformer import Definition, Params
from robustjax.models.victim import Victim


def next_token_losses(
    scores: Float[Array, "B T V"], tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, " B"]:
    """Negative log-likelihood (nats) of each row's real tokens, summed; the first has none.

    Args:
        scores: next-token scores; those of place ``i`` are about token ``i + 1``.
        tokens: the ids.
        mask: true at real tokens, which stand together.
    """
    return _losses_by_token(scores, tokens, mask).sum(-1)


def _losses_by_token(
    scores: Float[Array, "B T V"], tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T-1"]:
    losses = optax.softmax_cross_entropy_with_integer_labels(scores[:, :-1], tokens[:, 1:])
    return jnp.where(mask[:, :-1] & mask[:, 1:], losses, 0.0)


def perplexity(victim: Victim, texts: Sequence[str]) -> float:
    """Exponential of the mean negative log-likelihood of a token, over the tokens of all texts.

    The first token of a text is given: nothing comes before it that would predict it. Padding
    counts nowhere. Infinite where it exceeds what a float holds.

    Args:
        victim: a language model.
        texts: read whole, each by itself.

    Raises:
        UserError: the model is a classifier; a text is empty or longer than the context; no text
            has two tokens.
    """
    _check_head(victim)
    rows = victim.tokenizer.encode(list(texts))
    predicted = sum(len(row) - 1 for row in rows)
    sums = victim.score(rows, _row_losses, 1, "perplexity").sum(dtype=np.float64)
    if not predicted:
        raise UserError(
            f"model {victim.name}: perplexity needs a text of at least two tokens, but none of "
            f"{len(rows)} has as many; give longer texts"
        )
    with np.errstate(over="ignore"):
        return float(np.exp(sums / predicted))


def token_losses(victim: Victim, rows: Sequence[Sequence[int]]) -> list[Float[np.ndarray, " P"]]:
    """Negative log-likelihood (nats) of each token of each row but its first.

    Args:
        victim: a language model.
        rows: ids of each text, unpadded.

    Raises:
        UserError: the model is a classifier; a row is empty or longer than the context.
    """
    _check_head(victim)
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for chosen, losses in victim.score_batches(rows, _token_losses, "likelihood"):
        for place, one in zip(chosen, losses, strict=True):
            found[place] = one[: len(rows[place]) - 1]
    return found


def _check_head(victim: Victim) -> None:
    if victim.definition.head != "lm":
        raise UserError(
            f"model {victim.name} is a classifier, which predicts no tokens; load it with head='lm'"
        )


@functools.partial(jax.jit, static_argnames=("definition",))
def _token_losses(
    definition: Definition, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T-1"]:
    return _losses_by_token(transformer.apply(definition, params, tokens, mask), tokens, mask)


@functools.partial(jax.jit, static_argnames=("definition",))
def _row_losses(
    definition: Definition, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B 1"]:
    scores = transformer.apply(definition, params, tokens, mask)
    return next_token_losses(scores, tokens, mask)[:, None]
