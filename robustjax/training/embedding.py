"""A training attack on embeddings: cheap, because it searches no tokens and keeps no texts.

Before every update, the embeddings of some tokens of some texts are moved to where the loss is
high, within a small box, by a few steps along the sign of the gradient (projected gradient descent,
Madry et al. 2018, arXiv 1706.06083; on the embeddings of language models Xhonneux et al. 2024,
arXiv 2405.15589); the update then answers to the moved ones. No text has these embeddings, so what
it buys shows in attacks with texts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from robustjax.attacks.frame import check_position, check_positive
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import prepare
from robustjax.data.prompts import ChunkKind, Example, modifiable_index
from robustjax.errors import UserError
from robustjax.models.victim import Victim

Target = Literal["slot", "content"]


@dataclasses.dataclass(frozen=True)
class EmbeddingAttack:
    """Settings of the attack.

    Attributes:
        target: what is moved: the tokens of a slot, which random ones fill, or those of the text's
            own modifiable chunk.
        num_steps: steps along the sign of the gradient.
        epsilon: half the width of the box around each embedding, in every dimension; 1 is the root
            mean square of the embedding matrix.
        step_size: length of a step in every dimension, in the same unit.
        num_tokens: tokens of a slot.
        position: where a slot stands, as a fraction of the characters of the modifiable chunk.
    """

    target: Target = "slot"
    num_steps: int = 4
    epsilon: float = 1.0
    step_size: float = 0.4
    num_tokens: int = 10
    position: float = 1.0

    name = "embedding"

    def __post_init__(self) -> None:
        check_positive(self, "num_steps", "num_tokens")
        check_position(self.position)
        for field in ("epsilon", "step_size"):
            value = getattr(self, field)
            if not 0 < value < float("inf"):
                raise UserError(f"{field}={value} must be a number above 0")

    @property
    def added_tokens(self) -> int:
        """How many tokens it adds to a text."""
        return self.num_tokens if self.target == "slot" else 0


def worst_shift(
    attack: EmbeddingAttack,
    losses: Callable[[Float[Array, "B T D"]], Float[Array, " B"]],
    table: Float[Array, "V D"],
    free: Bool[Array, "B T"],
) -> Float[Array, "B T D"]:
    """Moves the embeddings of the free tokens to where the loss of their row is high.

    Args:
        attack: settings.
        losses: of each row, given what is added to its embeddings.
        table: the embedding matrix, whose root mean square is the unit.
        free: which tokens may be moved.

    Returns:
        What to add, float32, 0 where nothing is free. No gradient flows through it.
    """
    unit = jnp.sqrt(jnp.mean(jnp.square(table.astype(jnp.float32))))
    radius = jnp.where(free, attack.epsilon * unit, 0.0)[..., None]

    def climb(shift: Array, _: None) -> tuple[Array, None]:
        # Rows do not depend on one another, so the gradient of the sum is that of each.
        gradient = jax.grad(lambda shift: losses(shift).sum())(shift)
        moved = shift + attack.step_size * unit * jnp.sign(gradient)
        return jnp.clip(moved, -radius, radius), None

    start = jnp.zeros((*free.shape, table.shape[1]), jnp.float32)
    shift, _ = jax.lax.scan(climb, start, None, length=attack.num_steps)
    return jax.lax.stop_gradient(shift)


def free_rows(
    attack: EmbeddingAttack,
    victim: Victim,
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    chunk_kinds: tuple[ChunkKind, ...],
    seed: int,
) -> list[tuple[Sequence[int], range]]:
    """Token rows of examples and which of their tokens are free.

    An example in which no slot stands cleanly stays as it is, with nothing free.

    Args:
        attack: settings.
        victim: what reads the rows.
        examples: any; ids must differ.
        rows: the tokens of their texts.
        chunk_kinds: the task's chunk kinds.
        seed: keys the tokens of slots, together with an example's id.
    """
    if attack.target == "content":
        return list(zip(rows, _contents(victim, examples, chunk_kinds), strict=True))
    starts = GCG(num_tokens=attack.num_tokens, position=attack.position, random_start=True)
    prompts, _ = prepare(victim, examples, chunk_kinds, starts, seed)
    with_slot = {prompt.example.example_id: prompt for prompt in prompts}

    def row_of(example: Example, clean: Sequence[int]) -> tuple[Sequence[int], range]:
        if (prompt := with_slot.get(example.example_id)) is None:
            return clean, range(0)
        before, after = prompt.surrounding.before_ids, prompt.surrounding.after_ids
        start = len(before)
        return [*before, *prompt.slot, *after], range(start, start + len(prompt.slot))

    return [row_of(*pair) for pair in zip(examples, rows, strict=True)]


def _contents(
    victim: Victim, examples: Sequence[Example], chunk_kinds: tuple[ChunkKind, ...]
) -> list[range]:
    """The tokens of each example that stand for nothing but the modifiable chunk."""
    index = modifiable_index(chunk_kinds)
    spans = victim.tokenizer.character_spans([example.text for example in examples])

    def inside(example: Example, of_tokens: Sequence[tuple[int, int]]) -> range:
        start = sum(map(len, example.chunks[:index]))
        stop = start + len(example.chunks[index])
        found = [i for i, (a, b) in enumerate(of_tokens) if start <= a and b <= stop]
        return range(found[0], found[-1] + 1) if found else range(0)

    return [inside(*pair) for pair in zip(examples, spans, strict=True)]
