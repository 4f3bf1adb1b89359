"""Greedy coordinate gradient search (Zou et al. 2023, arXiv 2307.15043).

Each iteration, for each example: the gradient of the attack loss with respect to the one-hot slot
tokens names ``top_k`` promising replacements for each position; ``num_candidates`` single
replacements are drawn from them; those that survive retokenisation are scored; the best becomes the
new slot, even when it is worse than the current one.

As in Howe et al. 2024 (arXiv 2407.18213), except: when no candidate survives, the incumbent stays
and the iteration is recorded with ``num_valid`` 0; each example has its own random stream.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from robustjax.attacks import candidates, frame
from robustjax.attacks.objective import (
    PromptBatch,
    Scores,
    judge,
    make_tail,
    read_tail_and_keep,
    score,
)
from robustjax.attacks.replacements import (
    Replacements,
    choose,
    defies_the_odds,
    most_parts,
    part_starts,
    score_replacements,
)
from robustjax.attacks.retokenize import SlotText, clean_start, random_start
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.models.transformer import Cache, Definition, Params


@dataclasses.dataclass(frozen=True)
class GCG:
    """Settings of the attack.

    Attributes:
        num_iterations: search steps; every one is run.
        num_tokens: ``A``, length of the attack slot in tokens.
        num_candidates: ``C``, candidates scored in each iteration.
        top_k: promising tokens at each position.
        position: where the slot stands, as a fraction of the characters of the modifiable chunk.
        random_start: start from random tokens, each example from its own, and not from ``@&@&...``;
            as a training attack that shows a victim more kinds of slots.
        candidate_chunk: candidates of each example scored in one pass; bounds the memory, changes
            losses by rounding only. 0 takes a quarter of them, or another large part if they cannot
            be quartered. Fewer passes than four do more work: see ``replacements``.
    """

    num_iterations: int = 10
    num_tokens: int = 10
    num_candidates: int = 128
    top_k: int = 256
    position: float = 1.0
    random_start: bool = False
    candidate_chunk: int = 0

    name = "gcg"

    def __post_init__(self) -> None:
        frame.check_positive(self, "num_iterations", "num_tokens", "num_candidates", "top_k")
        if self.candidate_chunk < 0:
            raise UserError(f"candidate_chunk={self.candidate_chunk} must not be negative")
        frame.check_position(self.position)
        if self.num_candidates > self.top_k * self.num_tokens:
            raise UserError(
                f"num_candidates={self.num_candidates} is more than the top_k * num_tokens = "
                f"{self.top_k * self.num_tokens} replacements there are; lower it or raise top_k"
            )
        if self.num_candidates % self.chunk:
            raise UserError(
                f"candidate_chunk={self.candidate_chunk} does not divide "
                f"num_candidates={self.num_candidates}"
            )

    @property
    def chunk(self) -> int:
        """Candidates of each example scored in one pass."""
        if self.candidate_chunk:
            return min(self.candidate_chunk, self.num_candidates)
        return self.num_candidates // most_parts(self.num_candidates)


class Incumbent(NamedTuple):
    """The current slot of each example and what the victim makes of it."""

    slots: Int[Array, "B A"]
    loss: Float[Array, " B"]
    success: Bool[Array, " B"]
    answer: Float[Array, "B N"]
    num_valid: Int[Array, " B"]


def slot_width(attack: GCG) -> int:
    """Most tokens that a slot can have."""
    return attack.num_tokens


def start(
    attack: GCG, tokenizer: Tokenizer, surrounding: SlotText, seed: int, example_id: int
) -> list[int] | None:
    """Ids of a slot to start from, or None if none stands cleanly in its prompt."""
    find = random_start if attack.random_start else clean_start
    return find(tokenizer, surrounding, attack.num_tokens, seed, example_id)


def search(attack: GCG, run: frame.BatchRun, tick: Callable[[int], None]) -> frame.Outcome:
    """Runs the attack on one batch; ``tick`` hears of each iteration."""
    slots = init(run)
    history = []
    for iteration in range(1, attack.num_iterations + 1):
        state = step(attack, run, slots, iteration)
        slots = state.slots
        history.append(state)
        tick(1)
    kept = [frame.fetch(state) for state in history]
    num_valid = np.stack([state.num_valid for state in kept])
    # Per iteration: a forward and a backward pass (1 + 2) and a forward pass for each survivor.
    prompts = run.lengths + attack.num_tokens
    return frame.Outcome(
        [state.slots.tolist() for state in kept],
        np.stack([state.loss for state in kept]),
        np.stack([state.success for state in kept]),
        num_valid,
        kept[-1].answer,
        np.zeros(len(prompts), np.int64),
        prompts * (3 * attack.num_iterations + num_valid.sum(0, dtype=np.int64)),
        {},
    )


def init(run: frame.BatchRun) -> Int[Array, "B A"]:
    """The starting slots."""
    return run.put(np.array([prompt.slot for prompt in run.prompts], np.int32))


def step(attack: GCG, run: frame.BatchRun, slots: Int[Array, "B A"], iteration: int) -> Incumbent:
    """One iteration: the host filters candidates while the device scores them.

    Raises:
        UserError: if the tokenizer has too few tokens for ``num_candidates`` replacements.
    """
    victim = run.victim
    current, incumbent, proposed = propose(
        victim.definition,
        victim.params,
        run.prefix,
        run.batch,
        slots,
        run.forbidden,
        run.seed,
        jnp.uint32(iteration),
        top_k=possible_top_k(attack, run.num_allowed),
        count=attack.num_candidates,
    )
    known = (victim.definition, victim.params)
    parts = starts(attack, run.num_allowed)
    scores = score_replacements(
        *known, run.prefix, run.batch, incumbent, proposed, chunk=attack.chunk, starts=parts
    )
    valid = run.survivors(np.asarray(proposed.slots), np.asarray(slots))
    plainly = defies_the_odds(np.asarray(proposed.places), parts)
    if plainly.any():
        mask = run.full_mask(proposed.slots.shape)
        plain = score(*known, (run.prefix,), run.batch, proposed.slots, mask, chunk=attack.chunk)
        scores = choose(run.put(plainly), plain, scores)
    return select(slots, current, proposed.slots, scores, run.put(valid))


def starts(attack: GCG, num_allowed: int) -> tuple[int, ...]:
    """From which slot position on each part of the candidates is run."""
    top_k = possible_top_k(attack, num_allowed)
    return part_starts(attack.num_tokens, top_k, attack.num_candidates, attack.chunk)


def possible_top_k(attack: GCG, num_allowed: int) -> int:
    """``top_k``, or all tokens that an attack may use if those are fewer.

    Raises:
        UserError: if these are too few to draw ``num_candidates`` replacements from.
    """
    top_k = min(attack.top_k, num_allowed)
    if attack.num_candidates > top_k * attack.num_tokens:
        raise UserError(
            f"num_candidates={attack.num_candidates} is more than the "
            f"{top_k * attack.num_tokens} replacements that num_tokens={attack.num_tokens} and the "
            f"{num_allowed} tokens an attack may use of this tokenizer allow; lower it"
        )
    return top_k


def programs(attack: GCG, run: frame.BatchRun) -> list[frame.Program]:
    """What the search executes on one batch, for counting its FLOPs."""
    definition, params = run.victim.definition, run.victim.params
    slots = jax.ShapeDtypeStruct((len(run.prompts), attack.num_tokens), jnp.int32)
    run_propose = functools.partial(
        propose,
        definition,
        top_k=possible_top_k(attack, run.num_allowed),
        count=attack.num_candidates,
    )
    to_propose = (params, run.prefix, run.batch, slots, run.forbidden, run.seed, jnp.uint32(0))
    _, incumbent, proposed = jax.eval_shape(run_propose, *to_propose)
    run_score = functools.partial(
        score_replacements,
        definition,
        chunk=attack.chunk,
        starts=starts(attack, run.num_allowed),
    )
    to_score = (params, run.prefix, run.batch, incumbent, proposed)
    return [
        frame.Program(run_propose, to_propose, attack.num_iterations),
        frame.Program(run_score, to_score, attack.num_iterations),
    ]


@functools.partial(jax.jit, static_argnames=("definition", "top_k", "count"))
def propose(
    definition: Definition,
    params: Params,
    prefix: Cache,
    batch: PromptBatch,
    slots: Int[Array, "B A"],
    forbidden: Bool[Array, " V"],
    seed: UInt32[Array, ""],
    iteration: UInt32[Array, ""],
    *,
    top_k: int,
    count: int,
) -> tuple[Scores, Cache, Replacements]:
    """Scores the incumbents and draws candidates along their gradients.

    The gradient is taken with respect to the slot's embeddings and goes through the embedding
    matrix once; no gradient of a weight is formed.

    Args:
        forbidden: token ids that must not be proposed.

    Returns:
        Scores of the incumbents (``C`` is 1), the cache of their slots, and the candidates.
    """
    width = slots.shape[1]
    whole = jnp.ones_like(slots, bool)[:, None]
    tail = make_tail(batch, (prefix,), slots[:, None], whole)
    embeddings = transformer.embed(definition, params, tail.tokens)

    def total_loss(slot_embeddings: Array) -> tuple[Array, tuple[Scores, Cache]]:
        x = jnp.concatenate([slot_embeddings, embeddings[:, :, width:]], axis=2)
        logits, kept = read_tail_and_keep(definition, params, (prefix,), tail, x)
        scores = judge(logits, batch.goal)
        return scores.loss.sum(), (scores, kept.first(width))

    gradient, (current, incumbent) = jax.grad(total_loss, has_aux=True)(embeddings[:, :, :width])
    table = params["embed"]["embedding"].astype(gradient.dtype)
    token_gradient = jnp.einsum(
        "bad,vd->bav", gradient[:, 0], table, precision=definition.numerics.matmul_precision
    ).astype(jnp.float32)
    token_gradient = jnp.where(forbidden[None, None], jnp.inf, token_gradient)

    keys = candidates.example_keys(seed, batch.example_id, iteration)

    def draw(key: Array, gradient: Array, slot: Array) -> Replacements:
        tokens = candidates.top_tokens(gradient, top_k)
        places, drawn = candidates.sample_replacements(key, tokens, gradient.shape[-1], count)
        order = jnp.argsort(places)  # stable: candidates of one place stay in the order of the draw
        places = places[order]
        return Replacements(candidates.replace_one(slot, places, drawn[order]), places)

    return current, incumbent, jax.vmap(draw)(keys, token_gradient, slots)


@jax.jit
def select(
    slots: Int[Array, "B A"],
    current: Scores,
    proposed: Int[Array, "B C A"],
    scores: Scores,
    valid: Bool[Array, "B C"],
) -> Incumbent:
    """The valid candidate of lowest loss (the first on ties), or the incumbent if none is valid."""
    best = jnp.where(valid, scores.loss, jnp.inf).argmin(-1)
    any_valid = valid.any(-1)

    def pick(of_candidates: Array, of_incumbent: Array) -> Array:
        index = best.reshape(best.shape + (1,) * (of_candidates.ndim - 1))
        chosen = jnp.take_along_axis(of_candidates, index, axis=1)[:, 0]
        keep = any_valid.reshape(any_valid.shape + (1,) * (chosen.ndim - 1))
        return jnp.where(keep, chosen, of_incumbent)

    return Incumbent(
        pick(proposed, slots),
        pick(scores.loss, current.loss[:, 0]),
        pick(scores.success, current.success[:, 0]),
        pick(scores.answer, current.answer[:, 0]),
        valid.sum(-1, dtype=jnp.int32),
    )
