"""Greedy coordinate gradient search (Zou et al. 2023, arXiv 2307.15043).

Each iteration, for each example: the gradient of the attack loss with respect to the one-hot slot
tokens names ``top_k`` promising replacements for each position; ``num_candidates`` single
replacements are drawn from them; those that survive retokenisation are scored; the best becomes the
new slot, even when it is worse than the current one.

As in Howe et al. 2024 (arXiv 2407.18213), except: when no candidate survives, the incumbent stays
and the iteration is recorded with ``num_valid`` 0; each example has its own random stream. The
options that change the algorithm are off by default; ``docs/attacks.md`` has their sources.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, UInt32

from robustjax.attacks import candidates, frame, ranking
from robustjax.attacks.frame import BatchRun, Inputs, Pending, Placed, Program, Seen
from robustjax.attacks.objective import PromptBatch, make_tail
from robustjax.attacks.replacements import Replacements
from robustjax.attacks.retokenize import SlotText, clean_start, random_start
from robustjax.attacks.verdict import Scores, judge
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
        untargeted: aim for any wrong class instead of the example's target.
        random_start: start from random tokens, each example from its own, and not from ``@&@&...``;
            as a training attack that shows a victim more kinds of slots.
        candidate_chunk: candidates of each example scored in one pass; bounds the memory, changes
            losses by rounding only. 0 takes what makes 4,096 tokens, of few examples rather than of
            few candidates (see ``passes``). Passes of few candidates do a little more work: see
            ``replacements``.
        stop_at_success: leave an example alone once it was successful.
        keep_best: the new slot replaces the current one only if its loss is lower.
        num_replacements: tokens that a candidate replaces.
        momentum: share of the running mean of the gradients before in that which is followed, in
            [0, 1); the mean starts with the first gradient.
        probe_size: candidates that the victim scores in any case, while the companion chooses which
            of the others it scores as well; 0 lets the victim score all.
        probe_reduction: the victim scores at most ``num_candidates // probe_reduction`` others.
        bf16_scoring: rank candidates in bfloat16; the chosen one is scored again as the victim is.
    """

    num_iterations: int = 10
    num_tokens: int = 10
    num_candidates: int = 128
    top_k: int = 256
    position: float = 1.0
    untargeted: bool = False
    random_start: bool = False
    candidate_chunk: int = 0
    stop_at_success: bool = False
    keep_best: bool = False
    num_replacements: int = 1
    momentum: float = 0.0
    probe_size: int = 0
    probe_reduction: int = 8
    bf16_scoring: bool = False

    name = "gcg"

    def __post_init__(self) -> None:
        frame.check_positive(
            self,
            *("num_iterations", "num_tokens", "num_candidates", "top_k", "num_replacements"),
            "probe_reduction",
        )
        if self.probe_size < 0:
            raise UserError(f"probe_size={self.probe_size} must not be negative")
        frame.check_chunk(self.candidate_chunk, "num_candidates", self.num_candidates)
        frame.check_position(self.position)
        if self.num_candidates > self.top_k * self.num_tokens:
            raise UserError(
                f"num_candidates={self.num_candidates} is more than the top_k * num_tokens = "
                f"{self.top_k * self.num_tokens} replacements there are; lower it or raise top_k"
            )
        if self.num_replacements > self.num_tokens:
            raise UserError(
                f"num_replacements={self.num_replacements} is more than num_tokens="
                f"{self.num_tokens}; lower it"
            )
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum={self.momentum} must be at least 0 and less than 1")
        if self.probe_size == 1:
            raise UserError("probe_size=1 has no rank correlation; use 0 (off) or at least 2")
        if self.probe_size and self.bf16_scoring:
            raise UserError("probe_size and bf16_scoring exclude each other; set one of them")
        if self.probe_size and self.probe_size + self.num_others > self.num_candidates:
            raise UserError(
                f"probe_size={self.probe_size} and num_candidates // probe_reduction="
                f"{self.num_others} are more than num_candidates={self.num_candidates}; lower "
                "probe_size or raise probe_reduction"
            )

    @property
    def num_others(self) -> int:
        """Most candidates that the victim scores beside the probe set."""
        return max(1, self.num_candidates // self.probe_reduction)

    @property
    def needs_companion(self) -> bool:
        """Whether a smaller model of the victim's family is asked."""
        return self.probe_size > 0

    @property
    def variant(self) -> str:
        """Names of the options in use that change the algorithm, joined by ``+``."""
        return frame.variant(
            untargeted=self.untargeted,
            random_start=self.random_start,
            stop_at_success=self.stop_at_success,
            keep_best=self.keep_best,
            replacements=self.num_replacements > 1,
            momentum=self.momentum > 0,
            probe=self.probe_size > 0,
            bf16=self.bf16_scoring,
        )


class State(NamedTuple):
    """What one iteration hands to the next.

    Attributes:
        slots: the current slot of each example.
        gradient: running mean of the gradients so far, with respect to the slot's embeddings; of
            width 0 without momentum.
    """

    slots: Int[Placed, "B A"]
    gradient: Float[Placed, "B A D"]


class Incumbent(NamedTuple):
    """The current slot of each example and what the victim makes of it."""

    slots: Int[Placed, "B A"]
    loss: Float[Placed, " B"]
    success: Bool[Placed, " B"]
    answer: Float[Placed, "B N"]
    num_valid: Int[Placed, " B"]


def slot_width(attack: GCG) -> int:
    """Most tokens that a slot can have."""
    return attack.num_tokens


def start(
    attack: GCG, tokenizer: Tokenizer, surrounding: SlotText, seed: int, example_id: int
) -> list[int] | None:
    """Ids of a slot to start from, or None if none stands cleanly in its prompt."""
    find = random_start if attack.random_start else clean_start
    return find(tokenizer, surrounding, attack.num_tokens, seed, example_id)


def init(attack: GCG, run: BatchRun) -> State:
    """The starting slots."""
    width = run.victim.definition.config.width if attack.momentum else 0
    shape = (len(run.prompts), attack.num_tokens, width)
    slots = np.array([prompt.slot for prompt in run.prompts], np.int32)
    return State(*run.put((slots, np.zeros(shape, np.float32))))


def iterations_of_step(attack: GCG, iteration: int) -> int:
    """How many iterations the step that begins with ``iteration`` does."""
    return 1


def kept(state: State) -> State:
    """What of a state is saved: all."""
    return state


def revive(attack: GCG, run: BatchRun, saved: State) -> State:
    """A saved state on the device."""
    return run.put(saved)


def failures(attack: GCG, run: BatchRun, state: State) -> dict[int, str]:
    """Rows that could not be attacked: none."""
    return {}


def step(attack: GCG, run: BatchRun, state: State, iteration: int) -> tuple[State, Pending]:
    """One iteration: the host filters candidates while the device scores them.

    Raises:
        UserError: if the tokenizer has too few tokens for ``num_candidates`` replacements.
    """
    inputs = run.inputs
    current, incumbent, proposed, gradient = propose(
        inputs.victim.definition,
        inputs.victim.params,
        inputs.victim.prefix,
        inputs.batch,
        state,
        inputs.forbidden,
        inputs.seed,
        np.uint32(iteration),
        **_drawing(attack, inputs),
    )
    ranked = ranking.rank(attack, run, incumbent, proposed, state.slots, iteration)
    arguments = (state.slots, current, ranked.slots, ranked.scores, ranked.valid)
    if attack.bf16_scoring:
        first = select(*arguments)
        again = as_only_candidate(first, ranking.score_again(run, first.slots))
        new = select(state.slots, current, *again, keep_best=attack.keep_best)
        new = new._replace(num_valid=first.num_valid)
    else:
        new = select(*arguments, keep_best=attack.keep_best)
    calls = {"encode_prefix": np.array(int(iteration == 1)), "propose": np.array(1), **ranked.calls}
    prompt = run.lengths + attack.num_tokens

    def report(found: Incumbent) -> Seen:
        # By convention a forward and a backward pass (1 + 2), and a forward pass a survivor.
        num_valid = np.asarray(found.num_valid, np.int64)
        return frame.one_iteration(
            found,
            num_valid=num_valid,
            tokens=prompt * (3 + num_valid),
            companion_tokens=prompt * ranked.guessed,
            calls=calls,
        )

    return State(new.slots, gradient), Pending(new, report)


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


def _drawing(attack: GCG, inputs: Inputs) -> dict[str, Any]:
    """The static arguments of ``propose``."""
    return {
        "split": inputs.split,
        "top_k": possible_top_k(attack, inputs.num_allowed),
        "count": attack.num_candidates,
        "num_replacements": attack.num_replacements,
        "momentum": attack.momentum,
    }


def programs(attack: GCG, inputs: Inputs) -> dict[str, Program]:
    """What a search runs on a batch, by name."""
    width = inputs.victim.definition.config.width if attack.momentum else 0
    shape = (inputs.rows, attack.num_tokens)
    state = State(
        jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct((*shape, width), jnp.float32)
    )
    victim = inputs.victim
    run_propose = functools.partial(propose, victim.definition, **_drawing(attack, inputs))
    to_propose = (
        *(victim.params, victim.prefix, inputs.batch, state, inputs.forbidden, inputs.seed),
        jax.ShapeDtypeStruct((), jnp.uint32),
    )
    _, incumbent, proposed, _ = jax.eval_shape(run_propose, *to_propose)
    return {
        "encode_prefix": frame.prefix_program(victim, inputs.batch),
        "propose": Program(run_propose, to_propose),
        **ranking.programs(attack, inputs, incumbent, proposed),
    }


@functools.partial(
    jax.jit,
    static_argnames=("definition", "split", "top_k", "count", "num_replacements", "momentum"),
)
def propose(
    definition: Definition,
    params: Params,
    prefix: Cache,
    batch: PromptBatch,
    state: State,
    forbidden: Bool[Array, " V"],
    seed: UInt32[Any, ""],
    iteration: UInt32[Any, ""],
    *,
    split: NamedSharding | None = None,
    top_k: int,
    count: int,
    num_replacements: int = 1,
    momentum: float = 0.0,
) -> tuple[Scores, Cache, Replacements, Float[Array, "B A D"]]:
    """Scores the incumbents and draws candidates along their gradients.

    The gradient is taken with respect to the slot's embeddings and goes through the embedding
    matrix once; no gradient of a weight is formed.

    Args:
        forbidden: token ids that must not be proposed.
        split: how rows are split over devices, None if they are not.

    Returns:
        Scores of the incumbents (``C`` is 1), the cache of their slots, the candidates, and the
        gradient to carry on.
    """
    slots = state.slots
    width = slots.shape[1]
    whole = jnp.ones_like(slots, bool)[:, None]
    tail = make_tail(batch, (prefix,), slots[:, None], whole)
    embeddings = transformer.embed(definition, params, tail.tokens)

    def total_loss(slot_embeddings: Array) -> tuple[Array, tuple[Scores, Cache]]:
        x = jnp.concatenate([slot_embeddings, embeddings[:, :, width:]], axis=2)
        hidden, kept = transformer.forward_and_keep(
            definition, params, x, tail.positions, tail.mask, (prefix,), tail.read
        )
        scores = judge(definition, params, hidden, batch.goal)
        return scores.loss.sum(), (scores, kept.first(width).of_only_row())

    gradient, (current, incumbent) = jax.grad(total_loss, has_aux=True)(embeddings[:, :, :width])
    gradient = gradient[:, 0]
    carried = state.gradient
    if momentum:
        # The way from embeddings to tokens is linear, so a mean of the one is a mean of the other.
        new = gradient.astype(jnp.float32)
        carried = jnp.where(iteration == 1, new, momentum * carried + (1 - momentum) * new)
        gradient = carried.astype(gradient.dtype)
    table = params["embed"]["embedding"].astype(gradient.dtype)
    token_gradient = jnp.einsum(
        "bad,vd->bav", gradient, table, precision=definition.numerics.matmul_precision
    ).astype(jnp.float32)
    token_gradient = jnp.where(forbidden[None, None], jnp.inf, token_gradient)

    keys = candidates.example_keys(seed, batch.example_id, iteration)

    def draw(key: Array, gradient: Array, slot: Array) -> Replacements:
        tokens = candidates.top_tokens(gradient, top_k)
        if num_replacements > 1:
            slots = candidates.replace_several(key, slot, tokens, count, num_replacements)
            return Replacements(slots, jnp.zeros(count, jnp.int32))
        places, drawn = candidates.sample_replacements(key, tokens, gradient.shape[-1], count)
        order = jnp.argsort(places)  # stable: candidates of one place stay in the order of the draw
        places = places[order]
        return Replacements(candidates.replace_one(slot, places, drawn[order]), places)

    draw_all = jax.vmap(draw)
    if split is not None:
        # Left to itself the compiler would gather all rows to take the largest of each.
        draw_all = jax.shard_map(
            draw_all, mesh=split.mesh, in_specs=split.spec, out_specs=split.spec
        )
    return current, incumbent, draw_all(keys, token_gradient, slots), carried


@functools.partial(jax.jit, static_argnames=("keep_best",))
def select(
    slots: Int[Array, "B A"],
    current: Scores,
    proposed: Int[Array, "B C A"],
    scores: Scores,
    valid: Bool[Array, "B C"],
    *,
    keep_best: bool = False,
) -> Incumbent:
    """The valid candidate of lowest loss (the first on ties), or the incumbent if none is valid.

    Args:
        keep_best: also the incumbent if its loss is as low.
    """
    losses = jnp.where(valid, scores.loss, jnp.inf)
    best = losses.argmin(-1)
    moves = valid.any(-1)
    if keep_best:
        moves &= losses.min(-1) < current.loss[:, 0]

    def pick(of_candidates: Array, of_incumbent: Array) -> Array:
        index = best.reshape(best.shape + (1,) * (of_candidates.ndim - 1))
        chosen = jnp.take_along_axis(of_candidates, index, axis=1)[:, 0]
        move = moves.reshape(moves.shape + (1,) * (chosen.ndim - 1))
        return jnp.where(move, chosen, of_incumbent)

    return Incumbent(
        pick(proposed, slots),
        pick(scores.loss, current.loss[:, 0]),
        pick(scores.success, current.success[:, 0]),
        pick(scores.answer, current.answer[:, 0]),
        valid.sum(-1, dtype=jnp.int32),
    )


@jax.jit
def as_only_candidate(
    chosen: Incumbent, exact: Scores
) -> tuple[Int[Array, "B 1 A"], Scores, Bool[Array, "B 1"]]:
    """What ``select`` takes, for a choice that was scored again."""
    return chosen.slots[:, None], exact, (chosen.num_valid > 0)[:, None]
