"""Randomness of the searches, keyed by what is drawn and never by a place in a batch.

A draw depends on (attack seed, example id, iteration, slot position, token id) alone, so a result
does not change with the order of examples, with what shares the batch, or with an interruption.
"""

import functools

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


def replace_several(
    key: Key[Array, ""],
    slot: Int[Array, " A"],
    tokens: Int[Array, "A K"],
    count: int,
    num_replacements: int,
) -> Int[Array, "C A"]:
    """Copies of ``slot``, each with a few tokens at different positions replaced.

    Positions are drawn uniformly without replacement, and for each a token uniformly from those of
    the position that are not the slot's own (if it has only that one, it stays). Each position of
    each copy gets a random number from its own key, and so does each token there; the smallest are
    taken, so what is drawn does not change when another token enters or leaves a position's set.
    """
    positions = jnp.arange(slot.shape[0], dtype=jnp.uint32)

    def number_of(key: Array, name: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(key, name), dtype=jnp.uint32)

    def one(number: Array) -> Array:
        mine = functools.partial(jax.random.fold_in, jax.random.fold_in(key, number))
        keys = jax.vmap(mine)(positions)
        order = jnp.argsort(jax.vmap(lambda k: jax.random.bits(k, dtype=jnp.uint32))(keys))
        chosen = order[:num_replacements]
        possible = tokens[chosen].astype(jnp.uint32)
        draws = jax.vmap(jax.vmap(number_of, in_axes=(None, 0)))(keys[chosen], possible)
        is_own = possible == slot[chosen, None]
        first = jnp.where(is_own, jnp.uint32(2**32 - 1), draws).argmin(-1)
        drawn = jnp.take_along_axis(possible, first[:, None], axis=1)[:, 0]
        return slot.at[chosen].set(drawn.astype(slot.dtype))

    return jax.vmap(one)(jnp.arange(count, dtype=jnp.uint32))


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
