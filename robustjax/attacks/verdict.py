"""What an attack wants, and how far a victim's state is from it.

A classifier should answer wrongly: with one class, or with any but the true one. A language model
should go on with a text. Either way the loss is a cross-entropy in the form ``log1p(exp(others -
aimed))``. It does not saturate: once the goal leads by 17 nats, ``logsumexp - logit`` is rounding
noise in float32, while this one still ranks slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from robustjax.models import transformer
from robustjax.models.transformer import Definition, Params

ANY_OTHER = -1
"""As a target: any class but the true one (an untargeted attack)."""


class ClassGoal(NamedTuple):
    """A classifier should answer wrongly.

    Attributes:
        label: ``[B]`` the true class.
        target: ``[B]`` the class the attack aims for, or ``ANY_OTHER``.
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


def judge(
    definition: Definition, params: Params, hidden: Float[Array, "B C R D"], goal: Goal
) -> Scores:
    """Loss and success of what was read.

    Args:
        hidden: final states at the places that are read: of a classifier the last one, of a
            language model each place where a token of the text is predicted.
    """
    if isinstance(goal, ClassGoal):
        logits = transformer.project(definition, params, hidden)
        return judge_classes(logits[:, :, 0], goal)
    return judge_text(transformer.rivalry(definition, params, hidden, goal.tokens), goal)


def judge_classes(logits: Float[Array, "B C N"], goal: ClassGoal) -> Scores:
    """Loss toward the target; success against the true label (the first maximum answers)."""
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    label, target = goal.label[:, None, None], goal.target[:, None, None]
    aimed = (index == target) | ((target == ANY_OTHER) & (index != label))
    loss = jax.nn.softplus(_logsum(logits, ~aimed) - _logsum(logits, aimed))
    return Scores(loss, logits.argmax(-1) != goal.label[:, None], logits)


def _logsum(logits: Float[Array, "B C N"], chosen: Bool[Array, "B C N"]) -> Float[Array, "B C"]:
    """``logsumexp`` of the chosen ones; exact for a single one."""
    some = jnp.where(chosen, logits, -jnp.inf)
    top = jax.lax.stop_gradient(some.max(-1, keepdims=True))
    return jnp.log(jnp.exp(some - top).sum(-1)) + top[..., 0]


def judge_text(rivalry: transformer.Rivalry, goal: TextGoal) -> Scores:
    """Mean loss of a text's tokens; success if each is likelier than any other after those before.

    A tie is no success.
    """
    mask = jnp.broadcast_to(goal.mask[:, None], rivalry.score.shape)
    losses = jnp.where(mask, jax.nn.softplus(rivalry.logsum - rivalry.score), 0.0)
    leads = rivalry.score > rivalry.top
    return Scores(losses.sum(-1) / mask.sum(-1), (leads | ~mask).all(-1), -losses)
