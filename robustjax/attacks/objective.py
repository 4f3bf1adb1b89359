"""The one function that scores slots, and the batch of prompts that they stand in.

A prompt is ``before | attack slot | after``, and where a language model is attacked, the text it is
to go on with follows. ``before`` is in a cache; a scoring pass runs the slot and what follows it
(the tail) for ``C`` slots of each of ``B`` examples, and reads ``R`` places: a classifier is read
at the last real token, a language model where it predicts each token of the text.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from robustjax.attacks.passes import Pass, by_examples
from robustjax.attacks.verdict import Goal, Scores, TextGoal, judge
from robustjax.models import transformer
from robustjax.models.transformer import Cache, Definition, Params


class PromptBatch(NamedTuple):
    """A batch of prompts of one bucket; every width is static.

    Attributes:
        example_id: ``[B]`` keys the randomness of an example, wherever it stands in the batch.
        before: ``[B, P]`` right-padded ids before the slot.
        before_mask: ``[B, P]``.
        after: ``[B, S]`` right-padded ids after the slot.
        after_mask: ``[B, S]``.
        goal: what the attack wants.
    """

    example_id: UInt32[Array, " B"]
    before: Int[Array, "B P"]
    before_mask: Bool[Array, "B P"]
    after: Int[Array, "B S"]
    after_mask: Bool[Array, "B S"]
    goal: Goal


class Tail(NamedTuple):
    """The part of a prompt that a scoring pass runs: the slot and all that follows."""

    tokens: Int[Array, "B C T"]
    mask: Bool[Array, "B C T"]
    positions: Int[Array, "B C T"]
    read: Int[Array, "B C R"]


def make_tail(
    batch: PromptBatch,
    contexts: Sequence[Cache],
    slots: Int[Array, "B C W"],
    slot_mask: Bool[Array, "B C W"],
) -> Tail:
    """Joins slots, which follow the contexts, with what follows the slots.

    Positions count real tokens, so a masked slot token moves nothing. Of a text only the last token
    is left out: it is predicted, and nothing is predicted from it.
    """
    examples, rows, _ = slots.shape

    def rows_of(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (examples, rows, x.shape[-1]))

    tokens = jnp.concatenate([slots, rows_of(batch.after)], -1)
    mask = jnp.concatenate([slot_mask, rows_of(batch.after_mask)], -1)
    read = transformer.last_real(mask)[..., None]
    if isinstance(batch.goal, TextGoal):
        said, width = batch.goal.tokens.shape[-1] - 1, tokens.shape[-1]
        places = jnp.broadcast_to(width + jnp.arange(said), (examples, rows, said))
        read = jnp.concatenate([read, places], -1)
        tokens = jnp.concatenate([tokens, rows_of(batch.goal.tokens[:, :-1])], -1)
        mask = jnp.concatenate([mask, rows_of(batch.goal.mask[:, :-1])], -1)
    before = jnp.concatenate([context.mask for context in contexts], -1)
    start = before.sum(-1)[:, None, None]
    positions = start + jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)
    return Tail(tokens, mask, positions, read)


def tail_width(width: int, batch: PromptBatch) -> int:
    """Tokens of a tail whose slot has so many."""
    goal = batch.goal
    said = goal.tokens.shape[-1] - 1 if isinstance(goal, TextGoal) else 0
    return width + batch.after.shape[-1] + said


@functools.partial(jax.jit, static_argnames=("definition",))
def encode_prefix(definition: Definition, params: Params, batch: PromptBatch) -> Cache:
    """The cache of everything before the slot: computed once, never touched again."""
    return transformer.encode(definition, params, batch.before, batch.before_mask)


def run_chunk(
    definition: Definition,
    params: Params,
    contexts: Sequence[Cache],
    batch: PromptBatch,
    slots: Int[Array, "B C W"],
    slot_mask: Bool[Array, "B C W"],
) -> Float[Array, "B C R D"]:
    """Final states of ``C`` slots of each example at the places that are read, in one pass."""
    tail = make_tail(batch, contexts, slots, slot_mask)
    embeddings = transformer.embed(definition, params, tail.tokens)
    return transformer.forward(
        definition, params, embeddings, tail.positions, tail.mask, contexts, tail.read
    )


def run(
    definition: Definition,
    params: Params,
    contexts: Sequence[Cache],
    batch: PromptBatch,
    slots: Int[Array, "B C W"],
    slot_mask: Bool[Array, "B C W"],
    *,
    at_once: Pass,
) -> Float[Array, "B C R D"]:
    """Final states of all slots, pass by pass.

    Args:
        contexts: caches of all that stands before the slots, in order.
        at_once: what makes a pass.

    Raises:
        ValueError: if the candidates of a pass do not divide ``C``.
    """
    rows, chunk = slots.shape[1], at_once.candidates
    if rows % chunk:
        raise ValueError(f"chunk {chunk} does not divide {rows} slots")

    def of_examples(
        contexts: Sequence[Cache], batch: PromptBatch, slots: Array, slot_mask: Array
    ) -> Array:
        one = functools.partial(run_chunk, definition, params, contexts, batch)
        if rows == chunk:
            return one(slots, slot_mask)

        def split(x: Array) -> Array:
            return jnp.moveaxis(x.reshape(-1, rows // chunk, chunk, *x.shape[2:]), 1, 0)

        by_chunk = jax.tree.map(split, (slots, slot_mask))
        hidden = jax.lax.map(lambda rows: one(*rows), by_chunk)
        return jnp.moveaxis(hidden, 0, 1).reshape(-1, rows, *hidden.shape[3:])

    return by_examples(of_examples, at_once, tuple(contexts), batch, slots, slot_mask)


@functools.partial(jax.jit, static_argnames=("definition", "at_once"))
def score(
    definition: Definition,
    params: Params,
    contexts: Sequence[Cache],
    batch: PromptBatch,
    slots: Int[Array, "B C W"],
    slot_mask: Bool[Array, "B C W"],
    *,
    at_once: Pass,
) -> Scores:
    """Scores all slots; see ``run``. The head is one product for all of them."""
    hidden = run(definition, params, contexts, batch, slots, slot_mask, at_once=at_once)
    return judge(definition, params, hidden, batch.goal)
