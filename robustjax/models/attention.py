"""Attention that every port shares: over cached keys and values, and over the tokens of a row.

Scores are taken block by block, each with its own maximum and sum, and joined at the end, so cached
keys are neither concatenated with a row's own nor repeated for each row.

Rows of an example have one width, or several: then they are laid end to end on the token axis, and
all that a model computes of single tokens is one product for all of them.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from robustjax.models.layers import MASKED, gather_tokens

_LONG_ROW = 128
"""Tokens of a row from which on its causal attention is cut up."""

_CAUSAL_PARTS = 4
"""Parts that it is cut into; they save 3/8 of the products, any number at most 1/2."""


class Context(NamedTuple):
    """Keys and values that rows attend to, beside their own.

    Attributes:
        keys: ``[B, G, P, K]`` (``G`` key/value heads), shared by all rows of an example and never
            copied per row; or ``[B, C, G, P, K]``, each row's.
        values: the same for values.
        mask: ``[B, P]`` or ``[B, C, P]``, true where a real token stands.
    """

    keys: Float[Array, "B *C G P K"]
    values: Float[Array, "B *C G P K"]
    mask: Bool[Array, "B *C P"]

    @property
    def is_shared(self) -> bool:
        """Whether all rows of an example attend to the same."""
        return self.mask.ndim == 2


class Stretch(NamedTuple):
    """Rows of one width, which follow one another on the token axis.

    Attributes:
        rows: how many.
        width: tokens of each.
        known: tokens of the last shared context that stand before each row.
    """

    rows: int
    width: int
    known: int


class Own(NamedTuple):
    """What tokens of a stretch see.

    Attributes:
        mask: which tokens of its row each token that is read sees.
        known: see ``Stretch``.
    """

    mask: Bool[Array, "B rows R T"]
    known: int


Visible = Bool[Array, "B C _R _T"] | tuple[Own, ...]
"""Which own tokens are seen: of rows of one width, or by stretch."""


def causal(
    mask: Bool[Array, "B C T"],
    read: Int[Array, "B C R"] | None,
    stretches: Sequence[Stretch],
) -> tuple[Visible, Visible]:
    """What tokens see of their own row: all tokens, and those that are read.

    Args:
        mask: true at real tokens.
        read: indices into ``T``; the rows of stretches have the same number of them each.
        stretches: how ``T`` is made up of rows of several widths (``C`` is 1 then); none if it is
            a row.
    """
    if not stretches:
        all_see = _causal(mask)
        return all_see, all_see if read is None else gather_tokens(all_see, read)
    tokens, reads = [], []
    begin = first_row = 0
    count = sum(one.rows for one in stretches)
    for rows, width, known in stretches:
        shape = (mask.shape[0], rows, -1)
        see = _causal(mask[:, 0, begin : begin + rows * width].reshape(shape))
        tokens.append(Own(see, known))
        if read is not None:
            each = read.shape[2] // count
            places = read[:, 0, first_row * each : (first_row + rows) * each].reshape(shape)
            places = places - (begin + width * jnp.arange(rows))[None, :, None]
            reads.append(Own(gather_tokens(see, places), known))
        begin, first_row = begin + rows * width, first_row + rows
    return tuple(tokens), tuple(reads) or tuple(tokens)


def _causal(mask: Bool[Array, "B C T"]) -> Bool[Array, "B C T T"]:
    width = mask.shape[-1]
    return jnp.tril(jnp.ones((width, width), bool))[None, None] & mask[:, :, None, :]


def attend(
    queries: Float[Array, "B C R H K"],
    keys: Float[Array, "B C T G K"],
    values: Float[Array, "B C T G K"],
    visible: Visible,
    contexts: Sequence[Context],
    precision: str,
    *,
    is_causal: bool,
) -> Float[Array, "B C R H K"]:
    """Softmax attention over contexts and a row's own tokens, jointly normalised.

    Args:
        queries: of the tokens that are read; ``H`` is a multiple of ``G`` (grouped-query
            attention).
        keys: of a row's own tokens.
        values: of the same.
        visible: which of them each query sees; see ``causal``.
        contexts: keys and values beside a row's own.
        precision: of the products.
        is_causal: every token is read (``R`` is ``T``) and sees none after it, as ``visible`` has
            to say; then the parts of a long row only meet the keys up to their own end.
    """
    batch, rows, reads, heads, width = queries.shape
    groups = keys.shape[3]
    q = queries.reshape(batch, rows, reads, groups, heads // groups, width) * (width**-0.5)
    shared = [one for one in contexts if one.is_shared]
    per_row = [one for one in contexts if not one.is_shared]
    if isinstance(visible, tuple):
        partials = [_of_stretches(q, keys, values, visible, precision, is_causal)]
    else:
        partials = [_of_own(q, keys, values, visible, precision, is_causal)]
    partials += [
        _of_rows(q, one.keys, one.values, one.mask[:, :, None], precision) for one in per_row
    ]
    if shared:
        partials.append(_of_shared(q, shared, visible, precision))
    return _joined(partials).astype(queries.dtype).reshape(queries.shape)


class _Partial(NamedTuple):
    """Attention over some of the tokens, before it is normalised.

    Attributes:
        mixed: sum of the values, weighted with ``exp(score - top)``.
        total: sum of these weights.
        top: highest score.
    """

    mixed: Float[Array, "B C R G M K"]
    total: Float[Array, "B C R G M 1"]
    top: Float[Array, "B C R G M 1"]


def as_cached(keys: Array, values: Array) -> tuple[Array, Array]:
    """Keys and values of rows as a block makes them, ``[B, C, T, G, K]``, with heads first.

    A product of each head reads what is kept where it lies, without a copy in another order.
    """
    return jnp.swapaxes(keys, 2, 3), jnp.swapaxes(values, 2, 3)


def _of_rows(
    q: Array, keys: Array, values: Array, visible: Bool[Array, "B C *R T"], precision: str
) -> _Partial:
    """Each row over keys and values ``[B, C, G, T, K]`` that no other row sees."""
    products = ("bcrgmk,bcgtk->bcgrmt", "bcgrmt,bcgtk->bcgrmk")
    return _partial(q, keys, values, visible[:, :, None, :, None], precision, products, 2)


def _of_own(
    q: Array,
    keys: Array,
    values: Array,
    visible: Bool[Array, "B C R T"],
    precision: str,
    is_causal: bool,
) -> _Partial:
    """Each row over its own keys and values ``[B, C, T, G, K]``; see ``attend``."""
    keys, values = as_cached(keys, values)
    width = q.shape[2]
    if not is_causal or width < _LONG_ROW:
        return _of_rows(q, keys, values, visible, precision)
    size = -(-width // _CAUSAL_PARTS)
    cuts = [(start, min(start + size, width)) for start in range(0, width, size)]
    partials = [
        _of_rows(
            q[:, :, start:end],
            keys[..., :end, :],
            values[..., :end, :],
            visible[:, :, start:end, :end],
            precision,
        )
        for start, end in cuts
    ]
    return _laid_end_to_end(partials)


def _of_stretches(
    q: Array,
    keys: Array,
    values: Array,
    visible: tuple[Own, ...],
    precision: str,
    is_causal: bool,
) -> _Partial:
    """Each row over its own keys and values; rows of several widths are laid end to end."""
    partials = []
    read = begin = 0
    for mask, _ in visible:
        _, rows, reads, width = mask.shape

        def rows_of(x: Array, first: int, each: int, rows: int = rows) -> Array:
            return x[:, 0, first : first + rows * each].reshape(-1, rows, each, *x.shape[3:])

        own = rows_of(keys, begin, width), rows_of(values, begin, width)
        found = _of_own(rows_of(q, read, reads), *own, mask, precision, is_causal)
        partials.append(jax.tree.map(lambda x: x.reshape(x.shape[0], 1, -1, *x.shape[3:]), found))
        read, begin = read + rows * reads, begin + rows * width
    return _laid_end_to_end(partials)


def _laid_end_to_end(partials: Sequence[_Partial]) -> _Partial:
    """What one token after the other attends to."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *partials)


def _of_shared(q: Array, contexts: Sequence[Context], visible: Visible, precision: str) -> _Partial:
    """All rows over the same keys and values: one large product for each head.

    It keeps the layout in which it comes: only what has no token axis is transposed.
    """
    keys, values, real = contexts[0]
    if len(contexts) > 1:  # few tokens beside many: a product of their own would cost more
        keys = jnp.concatenate([one.keys for one in contexts], axis=2)
        values = jnp.concatenate([one.values for one in contexts], axis=2)
        real = jnp.concatenate([one.mask for one in contexts], axis=1)
    seen = real[:, None]
    if isinstance(visible, tuple):
        known = [np.full(one.mask.shape[1] * one.mask.shape[2], one.known) for one in visible]
        before = real.shape[1] - contexts[-1].mask.shape[1]
        known_of = before + np.concatenate(known)
        seen = seen & (np.arange(real.shape[1]) < known_of[:, None])[None]
    products = ("bcrgmk,bgpk->bgcrmp", "bgcrmp,bgpk->bgcrmk")
    return _partial(q, keys, values, seen[:, None, None, :, None], precision, products, 1)


def _partial(
    q: Float[Array, "B C R G M K"],
    keys: Array,
    values: Array,
    visible: Array,
    precision: str,
    products: tuple[str, str],
    groups_axis: int,
) -> _Partial:
    """Attention over one block of keys and values.

    Args:
        visible: which keys are seen, in the layout of the scores.
        products: the layouts of scores and mixed values, for ``einsum``.
        groups_axis: where ``G`` stands in both.
    """
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    to_scores, to_mixed = products
    scores = jnp.where(visible, product(to_scores, q, keys), MASKED)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    found = _Partial(
        product(to_mixed, weights.astype(q.dtype), values), weights.sum(-1, keepdims=True), top
    )
    return jax.tree.map(lambda x: jnp.moveaxis(x, groups_axis, 3), found)


def _joined(partials: Sequence[_Partial]) -> Float[Array, "B C R G M K"]:
    """Attention over all the tokens, normalised."""
    top = functools.reduce(jnp.maximum, (one.top for one in partials))
    scale = [jnp.exp(one.top - top) for one in partials]
    parts = zip(partials, scale, strict=True)
    mixed, total = zip(*((one.mixed * by, one.total * by) for one, by in parts), strict=True)
    return sum(mixed[1:], mixed[0]) / sum(total[1:], total[0])
