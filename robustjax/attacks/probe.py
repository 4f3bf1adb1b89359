"""Probe sampling (Zhao et al. 2024, arXiv 2403.01251): a smaller model filters candidates.

The companion scores all candidates, the victim a random probe set of them. The better the two agree
there (Spearman's rank correlation ``rho``), the fewer of the others the victim scores: the best by
the companion's scores, ``(1 - rho) / 2 * num_others`` of them. What is best among all that the
victim scored is chosen. Unlike in the paper, the others do not contain the probe set again.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from robustjax.attacks import candidates
from robustjax.attacks.objective import PromptBatch, score, tail_width
from robustjax.attacks.passes import fitting
from robustjax.attacks.verdict import Scores
from robustjax.models.transformer import Cache, Definition, Params

_STREAM = 0x9B0BE
"""Sets the choice of the probe set apart from the draw of candidates."""


@functools.partial(jax.jit, static_argnames=("definition", "probe_size", "num_others", "shards"))
def score_some(
    definition: Definition,
    params: Params,
    prefix: Cache,
    batch: PromptBatch,
    slots: Int[Array, "B C A"],
    guess: Float[Array, "B C"],
    valid: Bool[Array, "B C"],
    seed: UInt32[Array, ""],
    iteration: UInt32[Array, ""],
    *,
    probe_size: int,
    num_others: int,
    shards: int,
) -> tuple[Int[Array, "B S A"], Scores, Bool[Array, "B S"]]:
    """Scores the probe set and the most promising others.

    Args:
        guess: the companion's losses.
        valid: candidates that survived the filter.
        shards: see ``passes.Pass``.

    Returns:
        The ``S = probe_size + num_others`` slots, their scores by the victim, and which of them
        may be chosen.
    """
    keys = candidates.example_keys(seed, batch.example_id, iteration)
    count = slots.shape[1]
    probed = jax.vmap(functools.partial(_subset, count=count, size=probe_size))(keys)

    def scored(index: Int[Array, "B S"]) -> tuple[Array, Scores]:
        some = jnp.take_along_axis(slots, index[..., None], axis=1)
        mask = jnp.ones_like(some, bool)
        known = (definition, params, (prefix,), batch)
        examples, each, width = some.shape
        at_once = fitting(examples, each, tail_width(width, batch), shards)
        return some, score(*known, some, mask, at_once=at_once)

    probe_slots, probe_scores = scored(probed)
    agreement = rank_correlation(jnp.take_along_axis(guess, probed, axis=1), probe_scores.loss)
    wanted = jnp.clip(jnp.floor((1 - agreement) / 2 * num_others), 1, num_others)
    is_probed = jax.vmap(lambda index: jnp.zeros(count, bool).at[index].set(True))(probed)
    promise = jnp.where(valid & ~is_probed, guess, jnp.inf)
    others = jnp.argsort(promise, axis=-1)[:, :num_others]
    other_slots, other_scores = scored(others)
    in_time = jnp.arange(num_others)[None] < wanted[:, None]
    may_be_chosen = jnp.concatenate(
        [
            jnp.take_along_axis(valid, probed, axis=1),
            jnp.take_along_axis(valid & ~is_probed, others, axis=1) & in_time,
        ],
        axis=1,
    )
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), probe_scores, other_scores)
    return jnp.concatenate([probe_slots, other_slots], axis=1), both, may_be_chosen


def _subset(key: Key[Array, ""], *, count: int, size: int) -> Int[Array, " S"]:
    """``size`` of ``count`` numbers, uniformly without replacement; each has its own key."""
    stream = jax.random.fold_in(key, _STREAM)
    bits = jax.vmap(
        lambda number: jax.random.bits(jax.random.fold_in(stream, number), dtype=jnp.uint32)
    )(jnp.arange(count, dtype=jnp.uint32))
    return jnp.argsort(bits)[:size]


def rank_correlation(one: Float[Array, "B K"], other: Float[Array, "B K"]) -> Float[Array, " B"]:
    """Spearman's rank correlation of each row; equal values are ranked in their order."""
    ranks = [jnp.argsort(jnp.argsort(values, axis=-1), axis=-1) for values in (one, other)]
    apart = jnp.square((ranks[0] - ranks[1]).astype(jnp.float32)).sum(-1)
    size = one.shape[1]
    return 1 - 6 * apart / (size * (size * size - 1))
