"""What an attack minimises, and the one function that scores slots.

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

from robustjax.models import transformer
from robustjax.models.transformer import Cache, Definition, Params


class ClassGoal(NamedTuple):
    """A classifier should answer wrongly.

    Attributes:
        label: ``[B]`` the true class.
        target: ``[B]`` the class the attack aims for.
    """

    label: Int[Array, " B"]
    target: Int[Array, " B"]


class TextGoal(NamedTuple):
    """A language model should go on with a text, token by token.

    Attributes:
        tokens: ``[B, G]`` right-padded ids of the text, tokenised by itself.
        mask: ``[B, G]``.
    """

    tokens: Int[Array, "B G"]
    mask: Bool[Array, "B G"]


Goal = ClassGoal | TextGoal


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


class Scores(NamedTuple):
    """What the victim made of each slot.

    Attributes:
        loss: ``[B, C]`` attack loss (low: near the goal), nats.
        success: ``[B, C]`` whether a classifier's answer is wrong, or a language model's greedy
            continuation is the text.
        answer: ``[B, C, N]`` logits of the classes, or ``[B, C, G]`` log-probabilities of the
            text's tokens (0 at padding).
    """

    loss: Float[Array, "B C"]
    success: Bool[Array, "B C"]
    answer: Float[Array, "B C N"]


def attack_loss(
    logits: Float[Array, "*batch N"], target: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Cross-entropy of the target, a class or a token, as ``log1p(exp(others - target))``.

    This form does not saturate: once the target leads by 17 nats, ``logsumexp - logit`` is rounding
    noise in float32, while this one still ranks slots.
    """
    place = jnp.broadcast_to(target, logits.shape[:-1])[..., None]
    aimed = jnp.take_along_axis(logits, place, axis=-1)[..., 0]
    others = _without(logits, place)
    # Written out, and not by one-hot products, so that each line is one pass over a vocabulary.
    top = jax.lax.stop_gradient(others.max(-1))
    sums = jnp.exp(others - top[..., None]).sum(-1)
    return jax.nn.softplus(jnp.log(sums) + top - aimed)


def _without(logits: Float[Array, "*batch N"], place: Int[Array, "*batch 1"]) -> Array:
    """The logits with one of each row left out."""
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(index == place, -jnp.inf, logits)


def judge(logits: Float[Array, "B C R N"], goal: Goal) -> Scores:
    """Loss and success of what was read.

    A class: loss toward the target, success against the true label (the first maximum answers).
    A text: mean loss of its tokens, success if each is likelier than any other after those before
    it (a tie is no success).
    """
    shape = logits.shape[:2]
    if isinstance(goal, ClassGoal):
        logits = logits[:, :, 0]
        target = jnp.broadcast_to(goal.target[:, None], shape)
        label = jnp.broadcast_to(goal.label[:, None], shape)
        return Scores(attack_loss(logits, target), logits.argmax(-1) != label, logits)
    tokens = jnp.broadcast_to(goal.tokens[:, None], logits.shape[:3])
    mask = jnp.broadcast_to(goal.mask[:, None], logits.shape[:3])
    losses = jnp.where(mask, attack_loss(logits, tokens), 0.0)
    # Comparing with the maximum takes a fifth of the time of finding its place.
    place = tokens[..., None]
    leads = jnp.take_along_axis(logits, place, axis=-1)[..., 0] > _without(logits, place).max(-1)
    return Scores(losses.sum(-1) / mask.sum(-1), (leads | ~mask).all(-1), -losses)


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


def read_tail(
    definition: Definition,
    params: Params,
    contexts: Sequence[Cache],
    tail: Tail,
    embeddings: Float[Array, "B C T D"],
) -> Float[Array, "B C R N"]:
    """What the prompts that end in ``tail`` are answered, given its token embeddings."""
    hidden = transformer.forward(
        definition, params, embeddings, tail.positions, tail.mask, contexts, tail.read
    )
    return transformer.project(definition, params, hidden)


def read_tail_and_keep(
    definition: Definition,
    params: Params,
    contexts: Sequence[Cache],
    tail: Tail,
    embeddings: Float[Array, "B 1 T D"],
) -> tuple[Float[Array, "B 1 R N"], Cache]:
    """``read_tail`` for one row of each example, with the cache of its tail."""
    hidden, kept = transformer.forward_and_keep(
        definition, params, embeddings, tail.positions, tail.mask, contexts, tail.read
    )
    return transformer.project(definition, params, hidden), kept


@functools.partial(jax.jit, static_argnames=("definition",))
def encode_prefix(definition: Definition, params: Params, batch: PromptBatch) -> Cache:
    """The cache of everything before the slot: computed once, never touched again."""
    return transformer.encode(definition, params, batch.before, batch.before_mask)


def score_chunk(
    definition: Definition,
    params: Params,
    contexts: Sequence[Cache],
    batch: PromptBatch,
    slots: Int[Array, "B C W"],
    slot_mask: Bool[Array, "B C W"],
) -> Scores:
    """Scores ``C`` slots of each example in one pass."""
    tail = make_tail(batch, contexts, slots, slot_mask)
    embeddings = transformer.embed(definition, params, tail.tokens)
    return judge(read_tail(definition, params, contexts, tail, embeddings), batch.goal)


@functools.partial(jax.jit, static_argnames=("definition", "chunk"))
def score(
    definition: Definition,
    params: Params,
    contexts: Sequence[Cache],
    batch: PromptBatch,
    slots: Int[Array, "B C W"],
    slot_mask: Bool[Array, "B C W"],
    *,
    chunk: int,
) -> Scores:
    """Scores all slots, ``chunk`` of each example at a time (bounds the memory).

    Args:
        contexts: caches of all that stands before the slots, in order.

    Raises:
        ValueError: if ``chunk`` does not divide ``C``.
    """
    examples, rows, width = slots.shape
    if rows % chunk:
        raise ValueError(f"chunk {chunk} does not divide {rows} slots")
    run = functools.partial(score_chunk, definition, params, contexts, batch)
    if rows == chunk:
        return run(slots, slot_mask)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(examples, rows // chunk, chunk, width), 1, 0)

    scores = jax.lax.map(lambda pair: run(*pair), (split(slots), split(slot_mask)))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(examples, rows, *x.shape[3:]), scores
    )
