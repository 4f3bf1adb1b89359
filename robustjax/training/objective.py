"""What training minimises: the loss of a class label, or of each next token.

An objective is a sum of terms over a whole batch, divided by their number: one term a text for a
classifier, one a predicted token for a language model. So the gradient is the same however a batch
is cut into microbatches. The head of the model decides which it is.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from robustjax.errors import UserError
from robustjax.evaluation.perplexity import next_token_losses
from robustjax.models.victim import Victim

ObjectiveName = Literal["classifier", "lm"]


class Objective(NamedTuple):
    """The two functions that make an objective.

    Attributes:
        losses: from scores, ids, mask and labels of ``B`` rows to the sum of each row's terms
            (nats, float32 ``[B]``).
        terms: from the real tokens of rows to how many terms each row has; takes JAX's arrays and
            NumPy's.
    """

    losses: Callable[
        [
            Float[Array, "..."],
            Int[Array, "B T"],
            Bool[Array, "B T"],
            Int[Array, " B"],
        ],
        Float[Array, " B"],
    ]
    terms: Callable[
        [Int[Array | np.ndarray, "*batch"]],
        Int[Array | np.ndarray, "*batch"],
    ]


def _label_losses(
    scores: Float[Array, "B N"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    label: Int[Array, " B"],
) -> Float[Array, " B"]:
    del tokens, mask
    return optax.softmax_cross_entropy_with_integer_labels(scores, label)


def _token_losses(
    scores: Float[Array, "B T V"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    label: Int[Array, " B"],
) -> Float[Array, " B"]:
    del label
    return next_token_losses(scores, tokens, mask)


def _one_term(lengths: Int[Array | np.ndarray, "*batch"]) -> Int[Array | np.ndarray, "*batch"]:
    return lengths.clip(1, 1)


def _predicted_tokens(
    lengths: Int[Array | np.ndarray, "*batch"],
) -> Int[Array | np.ndarray, "*batch"]:
    # Nothing comes before the first token, so nothing predicts it.
    return (lengths - 1).clip(0)


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "classifier": Objective(_label_losses, _one_term),
    "lm": Objective(_token_losses, _predicted_tokens),
}
"""Each objective by the head that it trains."""


def check_head(victim: Victim, objective: ObjectiveName) -> None:
    """Raises UserError unless the victim has the head that an objective trains."""
    head = victim.definition.head
    if head != objective:
        raise UserError(
            f"objective={objective!r} does not go with model {victim.name}, which has the head "
            f"{head!r}; set objective={head!r}, or load the model with head={objective!r}"
        )
