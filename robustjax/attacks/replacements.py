"""Scores slots that differ from an incumbent in one place, without running what they share.

Everything before the place is the incumbent's. Candidates are ordered by their place and cut into a
few parts; a part attends to the incumbent's keys and values up to its start, before which none of
its candidates differs, and runs only what follows. Where parts start is fixed by the odds of a
uniform draw, so that program shapes do not depend on what was drawn; an example whose draw defies
the odds is scored plainly. Either way its result depends on nothing but itself.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from robustjax.attacks.objective import PromptBatch, Scores, score
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
    incumbent: Cache,
    proposed: Replacements,
    *,
    chunk: int,
    starts: tuple[int, ...],
) -> Scores:
    """Scores all candidates, ``chunk`` of each example at a time.

    Scores of examples that defy the odds mean nothing.

    Args:
        incumbent: keys and values of the slots that the candidates differ from, as they stand after
            ``prefix``.
        starts: see ``part_starts``; a single one scores them plainly.
    """
    size = proposed.slots.shape[1] // len(starts)

    def part(number: int, start: int) -> Scores:
        slots = proposed.slots[:, number * size : (number + 1) * size, start:]
        contexts = (prefix, incumbent.first(start)) if start else (prefix,)
        mask = jnp.ones_like(slots, bool)
        return score(definition, params, contexts, batch, slots, mask, chunk=chunk)

    parts = [part(number, start) for number, start in enumerate(starts)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *parts)


@jax.jit
def choose(plainly: Bool[Array, " B"], plain: Scores, by_parts: Scores) -> Scores:
    """For each example the one or the other."""

    def pick(one: Array, other: Array) -> Array:
        return jnp.where(plainly.reshape(plainly.shape + (1,) * (one.ndim - 1)), one, other)

    return jax.tree.map(pick, plain, by_parts)
