"""Randomness of the searches, keyed by what is drawn and never by a place in a batch.

A draw depends on (attack seed, example id, iteration, slot position, token id) alone, so a result
does not change with the order of examples, with what shares the batch, or with an interruption.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32


def example_keys(
    seed: UInt32[Array, ""], example_id: UInt32[Array, " B"], iteration: UInt32[Array, ""]
) -> Key[Array, " B"]:
    """One key for each example and iteration."""
    base = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(base, i), iteration))(
        example_id
    )


def top_tokens(gradient: Float[Array, "A V"], top_k: int) -> Int[Array, "A K"]:
    """The ``top_k`` tokens of most negative gradient at each position, ordered by token id.

    The order by id matters: ranks near the cut swap by rounding, and what is drawn from the set
    must not change with them.
    """
    _, tokens = jax.lax.top_k(-gradient, top_k)
    return jnp.sort(tokens, axis=-1)


def sample_replacements(
    key: Key[Array, ""],
    tokens: Int[Array, "A K"],
    vocab: int,
    count: int,
) -> tuple[Int[Array, " C"], Int[Array, " C"]]:
    """Draws ``count`` of the ``A * K`` (position, token) pairs, uniformly, without replacement.

    Every pair gets a random number from its own key and the smallest are taken.

    Returns:
        Slot positions and tokens.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[0])[:, None], tokens.shape)
    names = (positions * vocab + tokens).reshape(-1).astype(jnp.uint32)
    draw = jax.vmap(lambda name: jax.random.bits(jax.random.fold_in(key, name), dtype=jnp.uint32))
    order = jnp.argsort(draw(names))[:count]
    return positions.reshape(-1)[order], tokens.reshape(-1)[order]


def replace_one(
    slot: Int[Array, " A"], positions: Int[Array, " C"], tokens: Int[Array, " C"]
) -> Int[Array, "C A"]:
    """Copies of ``slot``, each with one token replaced."""
    copies = jnp.broadcast_to(slot, (positions.shape[0], slot.shape[0]))
    return copies.at[jnp.arange(positions.shape[0]), positions].set(tokens)


def random_slot(
    key: Key[Array, ""],
    attempt: UInt32[Array, ""],
    allowed: Int[Array, " K"],
    width: int,
) -> Int[Array, " A"]:
    """``width`` independent tokens, uniform over ``allowed``; ``attempt`` numbers redraws."""
    keys = jax.vmap(
        lambda position: jax.random.fold_in(jax.random.fold_in(key, attempt), position)
    )(jnp.arange(width))
    index = jax.vmap(lambda k: jax.random.randint(k, (), 0, allowed.shape[0]))(keys)
    return allowed[index]
