"""What an attack minimises, and the one function that scores slots.

A prompt is ``before | attack slot | after``. ``before`` is in a cache; a scoring pass runs the slot
and what follows it (the tail) for ``C`` slots of each of ``B`` examples, and reads the last real
token only.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

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
        label: ``[B]`` the true class.
        target: ``[B]`` the class the attack aims for.
    """

    example_id: UInt32[Array, " B"]
    before: Int[Array, "B P"]
    before_mask: Bool[Array, "B P"]
    after: Int[Array, "B S"]
    after_mask: Bool[Array, "B S"]
    label: Int[Array, " B"]
    target: Int[Array, " B"]


class Scores(NamedTuple):
    """What the victim made of each slot.

    Attributes:
        loss: ``[B, C]`` attack loss (low: near the target class), nats.
        success: ``[B, C]`` whether the victim's answer is wrong.
        logits: ``[B, C, N]``.
    """

    loss: Float[Array, "B C"]
    success: Bool[Array, "B C"]
    logits: Float[Array, "B C N"]


def attack_loss(
    logits: Float[Array, "*batch N"], target: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Cross-entropy of the target class, as ``log1p(exp(others - target))``.

    This form does not saturate: once the target leads by 17 nats, ``logsumexp - logit`` is rounding
    noise in float32, while this one still ranks slots.
    """
    classes = logits.shape[-1]
    is_target = jax.nn.one_hot(target, classes, dtype=bool)
    aimed = jnp.where(is_target, logits, 0.0).sum(-1)
    others = jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, logits), axis=-1)
    return jax.nn.softplus(others - aimed)


def judge(logits: Float[Array, "B C N"], batch: PromptBatch) -> Scores:
    """Loss toward the target and success against the true label (the first maximum answers)."""
    shape = logits.shape[:2]
    target = jnp.broadcast_to(batch.target[:, None], shape)
    label = jnp.broadcast_to(batch.label[:, None], shape)
    return Scores(attack_loss(logits, target), logits.argmax(-1) != label, logits)


class Tail(NamedTuple):
    """The part of a prompt that a scoring pass runs: slot and after, ``[B, C, W + S]``."""

    tokens: Int[Array, "B C T"]
    mask: Bool[Array, "B C T"]
    positions: Int[Array, "B C T"]
    read: Int[Array, "B C 1"]


def make_tail(
    batch: PromptBatch, slots: Int[Array, "B C W"], slot_mask: Bool[Array, "B C W"]
) -> Tail:
    """Joins slots with what follows them.

    Positions count real tokens, so a masked slot token moves nothing.
    """
    examples, rows, _ = slots.shape

    def rows_of(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (examples, rows, x.shape[-1]))

    tokens = jnp.concatenate([slots, rows_of(batch.after)], -1)
    mask = jnp.concatenate([slot_mask, rows_of(batch.after_mask)], -1)
    start = batch.before_mask.sum(-1)[:, None, None]
    positions = start + jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)
    return Tail(tokens, mask, positions, transformer.last_real(mask)[..., None])


def classify_tail(
    definition: Definition,
    params: Params,
    prefix: Cache,
    tail: Tail,
    embeddings: Float[Array, "B C T D"],
) -> Float[Array, "B C N"]:
    """Class scores of the prompts that end in ``tail``, given its token embeddings."""
    hidden = transformer.forward(
        definition, params, embeddings, tail.positions, tail.mask, (prefix,), tail.read
    )
    return transformer.project(definition, params, hidden[:, :, 0])


@functools.partial(jax.jit, static_argnames=("definition",))
def encode_prefix(definition: Definition, params: Params, batch: PromptBatch) -> Cache:
    """The cache of everything before the slot: computed once, never touched again."""
    return transformer.encode(definition, params, batch.before, batch.before_mask)


def score_chunk(
    definition: Definition,
    params: Params,
    prefix: Cache,
    batch: PromptBatch,
    slots: Int[Array, "B C W"],
    slot_mask: Bool[Array, "B C W"],
) -> Scores:
    """Scores ``C`` slots of each example in one pass."""
    tail = make_tail(batch, slots, slot_mask)
    embeddings = transformer.embed(definition, params, tail.tokens)
    return judge(classify_tail(definition, params, prefix, tail, embeddings), batch)


@functools.partial(jax.jit, static_argnames=("definition", "chunk"))
def score(
    definition: Definition,
    params: Params,
    prefix: Cache,
    batch: PromptBatch,
    slots: Int[Array, "B C W"],
    slot_mask: Bool[Array, "B C W"],
    *,
    chunk: int,
) -> Scores:
    """Scores all slots, ``chunk`` of each example at a time (bounds the memory).

    Raises:
        ValueError: if ``chunk`` does not divide ``C``.
    """
    examples, rows, width = slots.shape
    if rows % chunk:
        raise ValueError(f"chunk {chunk} does not divide {rows} slots")
    run = functools.partial(score_chunk, definition, params, prefix, batch)
    if rows == chunk:
        return run(slots, slot_mask)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(examples, rows // chunk, chunk, width), 1, 0)

    scores = jax.lax.map(lambda pair: run(*pair), (split(slots), split(slot_mask)))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(examples, rows, *x.shape[3:]), scores
    )
