"""Scores slots that differ from an incumbent in one place, without running what they share.

Everything before the place is the incumbent's. Candidates are ordered by their place and cut into a
few parts; a part attends to the incumbent's keys and values up to its start, before which none of
its candidates differs, and runs only what follows. Where parts start is fixed by the odds of a
uniform draw, so that program shapes do not depend on what was drawn; an example whose draw defies
the odds is scored plainly. Either way its result depends on nothing but itself.

In the first layer, what a block computes of each token by itself is also the incumbent's for all
tokens but the replaced one (where layers are unrolled, of which there are few: see the registry).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from robustjax.attacks.objective import PromptBatch, make_tail, run
from robustjax.attacks.verdict import Scores, judge
from robustjax.models import transformer
from robustjax.models.layers import Alone
from robustjax.models.transformer import Cache, Definition, Params

_MOST_PARTS = 4
"""More parts save little more, and each is compiled."""
_ODDS = 1e-4
"""Of one part's start being too late for one example. The cost is a plain pass for its batch."""


class Replacements(NamedTuple):
    """Slots with one token replaced, in the order of the replaced places.

    Attributes:
        slots: ``[B, C, A]``.
        places: ``[B, C]``, ascending.
    """

    slots: Int[Array, "B C A"]
    places: Int[Array, "B C"]


def most_parts(count: int) -> int:
    """The most parts of equal size that ``count`` candidates, or chunks of them, are cut into."""
    return next(parts for parts in range(_MOST_PARTS, 0, -1) if count % parts == 0)


@functools.lru_cache(maxsize=64)  # asked for in every iteration
def part_starts(num_tokens: int, top_k: int, count: int, chunk: int) -> tuple[int, ...]:
    """From which slot position on each part of the candidates is run; ascending, the first 0.

    Args:
        num_tokens: ``A``; places are drawn from ``num_tokens * top_k`` (place, token) pairs,
            uniformly and without replacement.
        top_k: tokens at each place.
        count: ``C``, how many are drawn.
        chunk: the parts have a whole number of chunks.
    """
    parts = most_parts(count // chunk)
    size = count // parts

    def is_safe(start: int, part: int) -> bool:
        """Whether more than ``part * size`` of all places being before ``start`` is improbable."""
        return _tail_odds(num_tokens * top_k, start * top_k, count, part * size) < _ODDS

    return tuple(
        max(start for start in range(num_tokens) if start == 0 or is_safe(start, part))
        for part in range(parts)
    )


def _tail_odds(pool: int, marked: int, drawn: int, most: int) -> float:
    """Odds that more than ``most`` of ``drawn`` from ``pool`` are among its ``marked``."""
    ways = sum(
        math.comb(marked, hits) * math.comb(pool - marked, drawn - hits)
        for hits in range(most + 1, min(marked, drawn) + 1)
    )
    return ways / math.comb(pool, drawn)


def defies_the_odds(
    places: Int[np.ndarray, "B C"], starts: tuple[int, ...]
) -> Bool[np.ndarray, " B"]:
    """Examples with a candidate in a part that starts after its place: to be scored plainly."""
    lowest = places[:, :: places.shape[1] // len(starts)]  # of each part
    return np.asarray((lowest < np.array(starts)).any(-1))


@functools.partial(jax.jit, static_argnames=("definition", "chunk", "starts"))
def score_replacements(
    definition: Definition,
    params: Params,
    prefix: Cache,
    batch: PromptBatch,
    current: Int[Array, "B A"],
    incumbent: Cache,
    proposed: Replacements,
    *,
    chunk: int,
    starts: tuple[int, ...],
) -> Scores:
    """Scores all candidates, ``chunk`` of each example at a time.

    Scores of examples that defy the odds mean nothing.

    Args:
        current: the slots that the candidates differ from.
        incumbent: their keys and values, as they stand after ``prefix``.
        starts: see ``part_starts``; a single one scores them plainly.
    """
    size = proposed.slots.shape[1] // len(starts)
    known = None
    if not definition.scanned:
        known = _first_layer(definition, params, prefix, batch, current, proposed)

    def part(number: int, start: int) -> Array:
        rows = slice(number * size, (number + 1) * size)
        slots = proposed.slots[:, rows, start:]
        contexts = (prefix, incumbent.first(start)) if start else (prefix,)
        mask = jnp.ones_like(slots, bool)
        first = None if known is None else _of_rows(known, proposed.places[:, rows], rows, start)
        return run(definition, params, contexts, batch, slots, mask, chunk=chunk, first=first)

    hidden = jnp.concatenate([part(*one) for one in enumerate(starts)], axis=1)
    return judge(definition, params, hidden, batch.goal)


def _first_layer(
    definition: Definition,
    params: Params,
    prefix: Cache,
    batch: PromptBatch,
    current: Int[Array, "B A"],
    proposed: Replacements,
) -> tuple[Alone, Alone]:
    """What the first block makes of the incumbents' tails, and of the token of each replacement."""
    whole = jnp.ones_like(current, bool)[:, None]
    tail = make_tail(batch, (prefix,), current[:, None], whole)
    place = proposed.places[..., None]
    token = jnp.take_along_axis(proposed.slots, place, axis=2)
    position = jnp.take_along_axis(
        jnp.broadcast_to(tail.positions, (*place.shape[:2], tail.positions.shape[2])), place, axis=2
    )

    def alone(tokens: Array, positions: Array) -> Alone:
        x = transformer.embed(definition, params, tokens)
        return transformer.first_alone(definition, params, x, positions)

    return alone(tail.tokens, tail.positions), alone(token, position)


def _of_rows(
    known: tuple[Alone, Alone], places: Int[Array, "B C"], rows: slice, start: int
) -> Alone:
    """What is known of each candidate's tokens from ``start`` on."""
    unchanged, replaced = known
    width = unchanged.keys.shape[2] - start
    is_new = places[..., None] == jnp.broadcast_to(start + jnp.arange(width), (1, 1, width))

    def pick(of_incumbent: Array, of_candidates: Array) -> Array:
        flags = is_new.reshape(is_new.shape + (1,) * (of_incumbent.ndim - 3))
        return jnp.where(flags, of_candidates[:, rows], of_incumbent[:, :, start:])

    return jax.tree.map(pick, unchanged, replaced)


@jax.jit
def choose(plainly: Bool[Array, " B"], plain: Scores, by_parts: Scores) -> Scores:
    """For each example the one or the other."""

    def pick(one: Array, other: Array) -> Array:
        return jnp.where(plainly.reshape(plainly.shape + (1,) * (one.ndim - 1)), one, other)

    return jax.tree.map(pick, plain, by_parts)
