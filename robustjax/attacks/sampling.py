"""Tokens that a language model proposes after each of many texts that grow (see ``beast``).

The sampler runs one token a beam at a time: what precedes is in two caches, one of the prefix that
all beams of an example share and one of each beam's own tokens. Sampling without replacement is by
perturbed scores (Gumbel top-k: Kool et al. 2019, arXiv 1903.06059), keyed by example, iteration and
the tokens of the beam, never by the beam's rank.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from robustjax.attacks import candidates, retokenize
from robustjax.attacks.frame import BatchRun, Placed, Reader
from robustjax.attacks.retokenize import SlotText
from robustjax.data.tokens import Tokenizer
from robustjax.models import transformer
from robustjax.models.transformer import Cache, Definition, Params
from robustjax.models.victim import Victim
from robustjax.runtime.mesh import named_sharding
from robustjax.runtime.rows import put

_SPARE = 3
"""Samples of each beam, in multiples of those wanted: enough to pass over some."""
_LEAST = 256
"""Samples of each beam, however few are wanted. Inside a word most of what a model proposes goes on
with the word, and merges with what precedes; a beam without a fitting token is lost."""

Pairs = tuple[Any, Any]
"""Keys and values of every layer, laid out as in ``transformer.Cache``."""


class Sampler(NamedTuple):
    """A language model that proposes what may follow each beam.

    Attributes:
        reader: it has read what precedes the slots but for the last token.
        last: that token; it is fed first, to learn what may follow.
        pairs: keys and values of it and of each beam's tokens but the newest.
    """

    reader: Reader
    last: Int[Placed, " B"]
    pairs: Pairs


def start(run: BatchRun, beams: int, width: int) -> Sampler:
    """The companion, or else the victim, in front of ``beams`` slots of up to ``width`` tokens."""
    reader = run.inputs.companion or run.inputs.victim
    # A slot at the very beginning follows what ends or pads a text.
    pad = run.victim.tokenizer.pad_id
    texts = [prompt.surrounding.before_ids or (pad,) for prompt in run.prompts]
    lengths = np.array([len(text) for text in texts])
    mask = np.arange(run.batch.before.shape[1])[None] < lengths[:, None] - 1
    last = np.array([text[-1] for text in texts], np.int32)
    mask, last = run.put((mask, last))
    reader = reader._replace(prefix=reader.prefix._replace(mask=mask))
    return Sampler(reader, last, empty_pairs(run.sampler, run.size, beams, width))


def pair_shape(definition: Definition, rows: int, beams: int, width: int) -> tuple[int, ...]:
    """Shape of the keys of ``width`` tokens of each beam: of all layers if they are stacked."""
    config = definition.config
    shape = (rows, beams, config.key_value_heads, width, config.head_width)
    return (config.layers, *shape) if definition.scanned else shape


def both(definition: Definition, one: Any) -> Pairs:
    """Keys and values of every layer, all of them like ``one``."""
    every = one if definition.scanned else (one,) * definition.config.layers
    return every, every


def empty_pairs(sampler: Victim, rows: int, beams: int, width: int) -> Pairs:
    """Room on the mesh for the keys and values of ``width`` tokens of each beam."""
    definition = sampler.definition
    shape = pair_shape(definition, rows, beams, width)
    axes = ("layers",) * (len(shape) - 5) + ("examples", None, None, None, None)
    sharding = named_sharding(sampler.mesh, sampler.rules, axes, shape)
    dtype = jnp.dtype(definition.numerics.compute_dtype)

    def zeros(_: int) -> Array:
        """Memory of its own: it is given away to be written over."""
        return put(np.zeros(shape, dtype), sharding)

    return jax.tree.map(zeros, both(definition, 0))


def num_samples(wanted: int, victim: Definition, sampler: Definition) -> int:
    """``M``, tokens sampled after each beam so that ``wanted`` of them fit."""
    return min(max(_SPARE * wanted, _LEAST), victim.config.vocab, sampler.config.vocab)


@functools.partial(jax.jit, static_argnames=("definition", "count"), donate_argnames=("pairs",))
def extend(
    definition: Definition,
    params: Params,
    prefix: Cache,
    pairs: Pairs,
    tokens: Int[Array, "B K A"],
    last: Int[Array, " B"],
    length: Int[Array, ""],
    forbidden: Bool[Array, " V"],
    seed: UInt32[Array, ""],
    example_id: UInt32[Array, " B"],
    *,
    count: int,
) -> tuple[Pairs, Int[Array, "B K M"], Bool[Array, "B K M"]]:
    """Feeds the newest token of each beam and samples what may follow it.

    Args:
        pairs: keys and values of each beam's tokens but the newest.
        last: the token before the slot, which is the newest of a beam without any.
        length: tokens that the beams have.
        count: ``M``.

    Returns:
        ``pairs`` with the newest token, samples of next tokens without replacement in the order in
        which they were drawn, and which of them are possible at all.
    """
    rows, beams, width = tokens.shape
    newest = jnp.take(tokens, jnp.maximum(length - 1, 0), axis=2)
    newest = jnp.where(length > 0, newest, jnp.broadcast_to(last[:, None], newest.shape))
    x = transformer.embed(definition, params, newest)[:, :, None]
    position = prefix.mask.sum(-1, dtype=jnp.int32)[:, None, None] + length
    so_far = jnp.broadcast_to(jnp.arange(width) < length, (rows, beams, width))
    hidden, new = transformer.forward_and_keep(
        *(definition, params, x, jnp.broadcast_to(position, (rows, beams, 1))),
        jnp.ones((rows, beams, 1), bool),
        (prefix, Cache(*pairs, so_far)),
    )
    pairs = jax.tree.map(
        lambda old, one: jax.lax.dynamic_update_slice_in_dim(old, one, length, axis=-2),
        pairs,
        (new.keys, new.values),
    )
    scores = transformer.project(definition, params, hidden)[:, :, 0]
    vocab = min(scores.shape[-1], forbidden.shape[0])  # beyond it there are no tokens
    scores = jnp.where(forbidden[:vocab], -jnp.inf, scores[..., :vocab])

    def noise(example_key: Array, beam: Int[Array, " A"]) -> Array:
        def fold(key: Array, place: Array) -> tuple[Array, None]:
            folded = jax.random.fold_in(key, beam[place])
            return jax.lax.select(place < length, folded, key), None

        key, _ = jax.lax.scan(fold, example_key, jnp.arange(width))
        return jax.random.gumbel(key, (vocab,))

    keys = candidates.example_keys(seed, example_id, length.astype(jnp.uint32) + 1)
    perturbed = scores + jax.vmap(jax.vmap(noise, in_axes=(None, 0)))(keys, tokens)
    values, drawn = jax.lax.top_k(perturbed, count)
    return pairs, drawn, values > -jnp.inf


class Grown(NamedTuple):
    """Slots that are one token longer, on the host; ``C`` is ``branch`` for each of ``K`` beams.

    Attributes:
        slots: as their text is tokenised.
        mask: true at real ids.
        valid: where there is a slot: those of a beam come first, and there may be fewer than room.
        tokens: the sampled token of each.
        passed_over: samples of each example after which its slot did not fit.
    """

    slots: Int[np.ndarray, "B C W"]
    mask: Bool[np.ndarray, "B C W"]
    valid: Bool[np.ndarray, "B C"]
    tokens: Int[np.ndarray, "B C"]
    passed_over: Int[np.ndarray, " B"]


def fitting(
    tokenizer: Tokenizer,
    surroundings: Sequence[SlotText],
    beams: Int[np.ndarray, "B K L"],
    drawn: Int[np.ndarray, "B K M"],
    possible: Bool[np.ndarray, "B K M"],
    *,
    branch: int,
    width: int,
) -> Grown:
    """The first ``branch`` samples of each beam after which its slot fits.

    Args:
        beams: tokens of the slots so far.
        drawn: samples of the next token, in order.
        possible: which of them count.
        width: ``W``, most tokens that a slot may have.
    """
    room = ((0, 0), (0, 0), (0, max(branch - drawn.shape[-1], 0)))
    drawn, left = np.pad(drawn, room), np.pad(possible, room)
    slots = np.full((*drawn.shape, width), tokenizer.pad_id, np.int32)
    mask = np.zeros(slots.shape, bool)
    fits, passed_over = np.zeros(drawn.shape, bool), np.zeros(drawn.shape, bool)
    while True:
        # As many are tried as are missing.
        missing = branch - fits.sum(-1, keepdims=True)
        tried = left & (np.cumsum(left, -1) <= missing)
        if not tried.any():
            break
        row, beam, _ = np.nonzero(tried)
        grown = np.concatenate([beams[row, beam], drawn[tried][:, None]], axis=1)
        around = [surroundings[index] for index in row.tolist()]
        new = retokenize.retokenise(tokenizer, around, grown[:, None], width)
        slots[tried], mask[tried], fits[tried] = (part[:, 0] for part in new)
        passed_over |= tried & ~fits
        left &= ~tried
    order = np.argsort(~fits, axis=-1, kind="stable")[..., :branch]

    def first(x: np.ndarray) -> np.ndarray:
        """Of each beam those that fit, in order."""
        index = order.reshape(order.shape + (1,) * (x.ndim - 3))
        chosen = np.take_along_axis(x, index, axis=2)
        return chosen.reshape(len(x), -1, *x.shape[3:])

    passed = passed_over.sum((1, 2), dtype=np.int64)
    return Grown(first(slots), first(mask), first(fits), first(drawn), passed)
