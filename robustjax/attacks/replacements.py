"""Scores slots that differ from an incumbent in one place, without running what they share.

Everything before the place is the incumbent's. Candidates are ordered by their place and cut into
parts; the rows of a part attend to the incumbent's keys and values up to its start, before which
none of them differs, and run only what follows. All parts are laid end to end, so that what a model
computes of single tokens stays one large product. Where parts begin and start is fixed by the odds
of a uniform draw, so that program shapes do not depend on what was drawn; candidates of a draw that
defies the odds are scored once more, in parts that start early enough. Either way an example's
result depends on nothing but itself.

In the first layer, what a block computes of each token by itself is also the incumbent's for all
tokens but the replaced one (where layers are unrolled, of which there are few: see the registry).
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from robustjax.attacks.objective import PromptBatch, Tail, make_tail
from robustjax.attacks.passes import Pass, by_examples
from robustjax.attacks.verdict import Scores, judge
from robustjax.models import transformer
from robustjax.models.attention import Stretch
from robustjax.models.layers import Alone
from robustjax.models.transformer import Cache, Definition, Params

_MOST_PARTS = 10
"""More parts save little more, and the attention of each is compiled."""
_ODDS = 1e-3
"""Of one part's start being too late for any example of a batch, which is then scored twice."""


class Replacements(NamedTuple):
    """Slots with one token replaced, in the order of the replaced places.

    Attributes:
        slots: ``[B, C, A]``.
        places: ``[B, C]``, ascending.
    """

    slots: Int[Array, "B C A"]
    places: Int[Array, "B C"]


class Part(NamedTuple):
    """Candidates that follow one another in the order of their places.

    Attributes:
        rows: how many.
        start: the slot position from which on they are run.
    """

    rows: int
    start: int


@functools.lru_cache(maxsize=64)  # asked for in every iteration
def parts_of(
    examples: int, num_tokens: int, top_k: int, count: int, chunk: int
) -> tuple[Part, ...]:
    """What the candidates are cut into; starts ascend, the first is 0.

    Args:
        examples: ``B``, of a batch.
        num_tokens: ``A``; places are drawn from ``num_tokens * top_k`` (place, token) pairs,
            uniformly and without replacement.
        top_k: tokens at each place.
        count: ``C``, how many are drawn.
        chunk: how many are scored in one pass. Each of ``count // chunk`` passes takes as many rows
            of every part.
    """
    passes = count // chunk
    begins = {0: 0}  # start -> the first candidate that may be run from there
    for start in range(0, num_tokens, -(-num_tokens // _MOST_PARTS))[1:]:
        odds = _odds_of_more(num_tokens * top_k, start * top_k, count)
        begin = next(
            begin for begin in range(0, count + passes, passes) if odds[begin] < _ODDS / examples
        )
        if begin < count:
            begins[start] = begin
    later = dict(zip(begins.values(), begins, strict=True))  # of several starts the latest
    return tuple(
        Part(end - begin, start)
        for (begin, start), end in zip(later.items(), [*list(later)[1:], count], strict=True)
    )


def _odds_of_more(pool: int, marked: int, drawn: int) -> list[float]:
    """Odds that more than 0, 1, ... of ``drawn`` from ``pool`` are among its ``marked``."""
    ways = [
        math.comb(marked, hits) * math.comb(pool - marked, drawn - hits)
        for hits in range(drawn + 1)
    ]
    more = itertools.accumulate(reversed(ways[1:]), initial=0)
    return [number / math.comb(pool, drawn) for number in reversed(list(more))]


def starts_of(parts: Sequence[Part]) -> Int[np.ndarray, " C"]:
    """The slot position from which on each row is run."""
    rows, starts = np.array(parts).T
    return np.asarray(np.repeat(starts, rows))


@functools.partial(jax.jit, static_argnames=("definition", "at_once", "parts"))
def score_replacements(
    definition: Definition,
    params: Params,
    prefix: Cache,
    batch: PromptBatch,
    current: Int[Array, "B A"],
    incumbent: Cache,
    proposed: Replacements,
    *,
    at_once: Pass,
    parts: tuple[Part, ...],
) -> Scores:
    """Scores all candidates, pass by pass.

    The score of a candidate whose row is run from after its place means nothing; see ``starts_of``.

    Args:
        current: the slots that the candidates differ from.
        incumbent: their keys and values, as they stand after ``prefix``.
        at_once: what makes a pass.
        parts: see ``parts_of``; a single one scores them plainly.
    """
    of_examples = functools.partial(_final_states, definition, params, at_once.candidates, parts)
    several = (prefix, batch, current, incumbent.first(parts[-1].start), proposed)
    hidden = by_examples(of_examples, at_once, *several)
    return judge(definition, params, hidden, batch.goal)


def _final_states(
    definition: Definition,
    params: Params,
    chunk: int,
    parts: tuple[Part, ...],
    prefix: Cache,
    batch: PromptBatch,
    current: Int[Array, "B A"],
    incumbent: Cache,
    proposed: Replacements,
) -> Float[Array, "B C R D"]:
    """Final states of all candidates of some examples, ``chunk`` of each at a time."""
    examples, count, _ = proposed.slots.shape
    passes = count // chunk
    unchanged = replaced = None
    if not definition.scanned:
        unchanged, replaced = _first_layer(definition, params, prefix, batch, current, proposed)
    of_a_pass = tuple(Part(rows // passes, start) for rows, start in parts)

    def one(proposed: Replacements, replaced: Alone | None) -> Array:
        tail, stretches = _end_to_end(prefix, incumbent, batch, proposed.slots, of_a_pass)
        first = None
        if unchanged is not None and replaced is not None:
            first = _known_of(unchanged, replaced, proposed.places, of_a_pass)
        x = transformer.embed(definition, params, tail.tokens)
        hidden = transformer.forward(
            *(definition, params, x, tail.positions, tail.mask),
            *((prefix, incumbent), tail.read, first),
            stretches=stretches,
        )
        return hidden.reshape(examples, chunk, -1, hidden.shape[-1])

    if passes == 1:
        return one(proposed, replaced)
    split = functools.partial(_dealt, parts=parts, passes=passes)
    by_pass = jax.lax.map(lambda dealt: one(*dealt), jax.tree.map(split, (proposed, replaced)))
    return _collected(by_pass, of_a_pass)


def _dealt(x: Array, parts: tuple[Part, ...], passes: int) -> Array:
    """``[B, C, ...]`` to ``[passes, B, C / passes, ...]``: a share of every part to each pass."""
    shares = [
        rows.reshape(rows.shape[0], passes, -1, *rows.shape[2:]) for rows in _cut(x, 1, parts)
    ]
    return jnp.moveaxis(jnp.concatenate(shares, axis=2), 1, 0)


def _collected(x: Array, of_a_pass: tuple[Part, ...]) -> Array:
    """The way back."""
    shares = [jnp.moveaxis(share, 0, 1) for share in _cut(x, 2, of_a_pass)]
    return jnp.concatenate(
        [share.reshape(share.shape[0], -1, *share.shape[3:]) for share in shares], axis=1
    )


def _cut(x: Array, axis: int, parts: tuple[Part, ...]) -> list[Array]:
    """The candidates of each part."""
    return jnp.split(x, np.cumsum([part.rows for part in parts])[:-1], axis)


def _end_to_end(
    prefix: Cache,
    incumbent: Cache,
    batch: PromptBatch,
    slots: Int[Array, "B C A"],
    parts: tuple[Part, ...],
) -> tuple[Tail, tuple[Stretch, ...]]:
    """What a pass runs, as a single row: the candidates' tails, each from its part's start on."""
    tails, stretches = [], []
    begin = 0
    for rows, (count, start) in zip(_cut(slots, 1, parts), parts, strict=True):
        known = (prefix, incumbent.first(start))
        tail = make_tail(batch, known, rows[..., start:], jnp.ones_like(rows[..., start:], bool))
        width = tail.tokens.shape[-1]
        places = begin + width * jnp.arange(count)
        tails.append(tail._replace(read=tail.read + places[None, :, None]))
        stretches.append(Stretch(count, width, start))
        begin += count * width

    def laid(*of_parts: Array) -> Array:
        return jnp.concatenate([one.reshape(one.shape[0], 1, -1) for one in of_parts], axis=-1)

    return jax.tree.map(laid, *tails), tuple(stretches)


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


def _known_of(
    unchanged: Alone, replaced: Alone, places: Int[Array, "B C"], parts: tuple[Part, ...]
) -> Alone:
    """What is known of each token of a pass, laid end to end."""

    def pick(of_incumbent: Array, of_candidates: Array) -> Array:
        found = []
        width = of_incumbent.shape[2]
        cuts = zip(_cut(places, 1, parts), _cut(of_candidates, 1, parts), parts, strict=True)
        for where, new, (_, start) in cuts:
            is_new = where[..., None] == jnp.arange(start, width)[None, None]
            flags = is_new.reshape(is_new.shape + (1,) * (new.ndim - 3))
            tokens = jnp.where(flags, new, of_incumbent[:, :, start:])
            found.append(tokens.reshape(tokens.shape[0], 1, -1, *tokens.shape[3:]))
        return jnp.concatenate(found, axis=2)

    return jax.tree.map(pick, unchanged, replaced)
