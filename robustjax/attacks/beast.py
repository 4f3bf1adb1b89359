"""BEAST: beam search with tokens that a language model proposes.

Sadasivan et al. 2024 (arXiv 2402.15570).

A slot grows by one token an iteration. For each of ``beam_width`` slots a language model, reading
what stands before the slot and the slot so far, samples ``branch_factor`` distinct next tokens; the
victim scores all of them; the ``beam_width`` of lowest loss are gone on with. The best slot of all
iterations is the result, and what each iteration's record shows.

As in Howe et al. 2024 (arXiv 2407.18213), except: what is scored are the ids that the slot's text
really has inside the prompt, in a masked slot of twice the final length; a token after which it
does not fit is passed over for the next of the same sample, and counted; special tokens are not
sampled; the first beam, of one empty slot, is treated as the others, so that ``beam_width`` and
``branch_factor`` may differ.

The sampler is the companion, or a victim that is a language model itself; see ``sampling``.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from robustjax.attacks import frame, sampling
from robustjax.attacks.frame import BatchRun, Inputs, Pending, Placed, Program, Seen
from robustjax.attacks.objective import score
from robustjax.attacks.retokenize import SlotText
from robustjax.attacks.sampling import Pairs, Sampler
from robustjax.attacks.verdict import Scores
from robustjax.data.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class BEAST:
    """Settings of the attack.

    Attributes:
        num_iterations: tokens that the slot grows to.
        beam_width: ``K``, slots that are gone on with (``k1``).
        branch_factor: next tokens tried for each of them (``k2``).
        position: where the slot stands, as a fraction of the characters of the modifiable chunk.
        untargeted: aim for any wrong class instead of the example's target.
        candidate_chunk: candidates of each example scored in one pass; bounds the memory, changes
            losses by rounding only. 0 takes what makes 4,096 tokens, of few examples rather than of
            few candidates (see ``passes``).
        stop_at_success: leave an example alone once it was successful.
    """

    num_iterations: int = 25
    beam_width: int = 15
    branch_factor: int = 15
    position: float = 1.0
    untargeted: bool = False
    candidate_chunk: int = 0
    stop_at_success: bool = False

    name = "beast"
    needs_companion = True

    def __post_init__(self) -> None:
        frame.check_positive(self, "num_iterations", "beam_width", "branch_factor")
        frame.check_position(self.position)
        frame.check_chunk(self.candidate_chunk, "beam_width * branch_factor", self.num_candidates)

    @property
    def num_tokens(self) -> int:
        """``A``, tokens that the slot grows to."""
        return self.num_iterations

    @property
    def num_candidates(self) -> int:
        """``C``, candidates scored in each iteration."""
        return self.beam_width * self.branch_factor

    @property
    def variant(self) -> str:
        """Names of the options in use that change the algorithm, joined by ``+``."""
        return frame.variant(untargeted=self.untargeted, stop_at_success=self.stop_at_success)


class Best(NamedTuple):
    """The best slot so far, as its text is tokenised, and what the victim makes of it.

    Attributes:
        num_valid: candidates of the last iteration.
    """

    slots: Int[Placed, "B W"]
    mask: Bool[Placed, "B W"]
    loss: Float[Placed, " B"]
    success: Bool[Placed, " B"]
    answer: Float[Placed, "B N"]
    num_valid: Int[Placed, " B"]


class State(NamedTuple):
    """What one iteration hands to the next.

    Attributes:
        tokens: sampled ids of the beams; only those of the iterations so far count.
        is_alive: a beam may hold fewer slots than it has room for.
        length: tokens that each has so far.
        best: best slot of all iterations; its loss is infinite until there is one.
        sampler: what it knows of the beams.
    """

    tokens: Int[Placed, "B K A"]
    is_alive: Bool[Placed, "B K"]
    length: int
    best: Best
    sampler: Sampler


class Kept(NamedTuple):
    """What of a state is saved; the caches are made again."""

    tokens: Int[Placed, "B K A"]
    is_alive: Bool[Placed, "B K"]
    length: Int[np.ndarray, ""]
    best: Best


def slot_width(attack: BEAST) -> int:
    """Most tokens that a slot can have."""
    return 2 * attack.num_tokens


def start(
    attack: BEAST, tokenizer: Tokenizer, surrounding: SlotText, seed: int, example_id: int
) -> list[int]:
    """Nothing: a slot grows from none."""
    return []


def init(attack: BEAST, run: BatchRun) -> State:
    """One empty slot, and the sampler's cache of what precedes it."""
    rows, beams = len(run.prompts), attack.beam_width
    is_alive = np.zeros((rows, beams), bool)
    is_alive[:, 0] = True
    width, answers = slot_width(attack), frame.answer_width(run)
    best = Best(
        np.zeros((rows, width), np.int32),
        np.zeros((rows, width), bool),
        np.full(rows, np.inf, np.float32),
        np.zeros(rows, bool),
        np.zeros((rows, answers), np.float32),
        np.zeros(rows, np.int32),
    )
    tokens = np.zeros((rows, beams, attack.num_tokens), np.int32)
    tokens, is_alive, best = run.put((tokens, is_alive, best))
    return State(tokens, is_alive, 0, best, sampling.start(run, beams, attack.num_tokens))


def iterations_of_step(attack: BEAST, iteration: int) -> int:
    """How many iterations the step that begins with ``iteration`` does."""
    return 1


def kept(state: State) -> Kept:
    """What of a state is saved."""
    return Kept(state.tokens, state.is_alive, np.array(state.length), state.best)


def revive(attack: BEAST, run: BatchRun, saved: Kept) -> State:
    """The state that was saved; the sampler reads the beams again, token by token.

    With the same program as before, so that its caches have the same bits.
    """
    tokens, is_alive, best = run.put((saved.tokens, saved.is_alive, tuple(saved.best)))
    state = init(attack, run)._replace(tokens=tokens, is_alive=is_alive, best=Best(*best))
    for length in range(int(saved.length)):
        pairs, _, _ = _extend(attack, run, state._replace(length=length))
        state = state._replace(sampler=state.sampler._replace(pairs=pairs))
    return state._replace(length=int(saved.length))


def failures(attack: BEAST, run: BatchRun, state: State) -> dict[int, str]:
    """Rows for which no first token stood cleanly."""
    reason = f"no token that the sampler proposes stands cleanly at position {attack.position}"
    losses = run.fetch(state.best.loss)
    return {int(row): reason for row in np.flatnonzero(np.isinf(losses))}


def step(attack: BEAST, run: BatchRun, state: State, iteration: int) -> tuple[State, Pending]:
    """Grows the slots by one token."""
    pairs, drawn, possible = _extend(attack, run, state)
    on_device = (state.is_alive, state.tokens, drawn, possible)
    is_alive, beams, proposed, is_possible = run.fetch(on_device)
    grown = sampling.fitting(
        run.victim.tokenizer,
        run.surroundings,
        beams[:, :, : state.length],
        proposed,
        is_possible & is_alive[..., None],
        branch=attack.branch_factor,
        width=slot_width(attack),
    )
    victim = run.inputs.victim
    slots, mask, valid, tokens = run.put((grown.slots, grown.mask, grown.valid, grown.tokens))
    scores = score(
        *(victim.definition, victim.params, (victim.prefix,), run.batch, slots, mask),
        at_once=frame.pass_of(attack, slot_width(attack), run.inputs),
    )
    arguments = (state.tokens, np.int32(state.length), pairs, state.best)
    is_stacked = state.sampler.reader.definition.scanned
    new_tokens, new_alive, pairs, best = select(
        *arguments, slots, mask, tokens, scores, valid, scanned=is_stacked
    )
    # By convention a whole forward pass of the sampler for each slot that grows.
    reading = np.array([len(prompt.surrounding.before_ids) for prompt in run.prompts])
    sampled = is_alive.sum(-1) * (reading + state.length)
    scored = run.counted_tokens(grown.mask, grown.valid).sum(-1)
    asks_itself = run.companion is None
    at_first = np.array(int(iteration == 1))
    calls = {"encode_prefix": at_first, "extend": np.array(1), "score": np.array(1)}
    calls |= {} if asks_itself else {"encode_companion_prefix": at_first}

    def report(best: Best) -> Seen:
        return frame.one_iteration(
            best,
            num_valid=np.asarray(best.num_valid, np.int64),
            tokens=scored + (sampled if asks_itself else 0),
            calls=calls,
            mask=np.asarray(best.mask),
            num_retokenised=grown.passed_over,
            companion_tokens=0 * sampled if asks_itself else sampled,
        )

    sampler = state.sampler._replace(pairs=pairs)
    state = State(new_tokens, new_alive, state.length + 1, best, sampler)
    return state, Pending(best, report)


def _extend(
    attack: BEAST, run: BatchRun, state: State
) -> tuple[Pairs, Int[Array, "B K M"], Bool[Array, "B K M"]]:
    (definition, params, prefix), last, pairs = state.sampler
    return sampling.extend(
        *(definition, params, prefix, pairs, state.tokens, last),
        *(np.int32(state.length), run.forbidden, run.seed, run.batch.example_id),
        count=sampling.num_samples(attack.branch_factor, run.victim.definition, definition),
    )


@functools.partial(jax.jit, static_argnames=("scanned",), donate_argnames=("pairs",))
def select(
    tokens: Int[Array, "B K A"],
    length: Int[Array, ""],
    pairs: Pairs,
    best: Best,
    slots: Int[Array, "B C W"],
    mask: Bool[Array, "B C W"],
    sampled: Int[Array, "B C"],
    scores: Scores,
    valid: Bool[Array, "B C"],
    *,
    scanned: bool,
) -> tuple[Int[Array, "B K A"], Bool[Array, "B K"], Pairs, Best]:
    """The beams of lowest loss (the first on ties), and the best slot so far."""
    beams = tokens.shape[1]
    losses = jnp.where(valid, scores.loss, jnp.inf)
    order = jnp.argsort(losses, axis=-1)[:, :beams]
    parent = order // (losses.shape[1] // beams)

    def of_parents(x: Array) -> Array:
        return jax.vmap(lambda one, index: one[index])(x, parent)

    grown = of_parents(tokens)
    newest = jnp.take_along_axis(sampled, order, axis=1)
    is_new = jnp.arange(tokens.shape[2])[None, None] == length
    grown = jnp.where(is_new, newest[..., None], grown)
    gather = jax.vmap(of_parents) if scanned else of_parents
    pairs = jax.tree.map(gather, pairs)
    is_alive = jnp.take_along_axis(valid, order, axis=1)

    winner = order[:, 0]
    improves = losses.min(-1) < best.loss

    def better(new: Array, old: Array) -> Array:
        index = winner.reshape(winner.shape + (1,) * (new.ndim - 1))
        chosen = jnp.take_along_axis(new, index, axis=1)[:, 0]
        return jnp.where(improves.reshape(improves.shape + (1,) * (chosen.ndim - 1)), chosen, old)

    new_best = Best(
        better(slots, best.slots),
        better(mask, best.mask),
        better(scores.loss, best.loss),
        better(scores.success, best.success),
        better(scores.answer, best.answer),
        valid.sum(-1, dtype=jnp.int32),
    )
    return grown, is_alive, pairs, new_best


def programs(attack: BEAST, inputs: Inputs) -> dict[str, Program]:
    """What a search runs on a batch, by name."""
    victim, sampler = inputs.victim, inputs.companion or inputs.victim
    rows, beams, width = inputs.rows, attack.beam_width, attack.num_tokens
    definition = sampler.definition

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    of_layer = sampling.pair_shape(definition, rows, beams, width)
    one = array(*of_layer, dtype=jnp.dtype(definition.numerics.compute_dtype))
    run_extend = functools.partial(
        sampling.extend,
        definition,
        count=sampling.num_samples(attack.branch_factor, victim.definition, definition),
    )
    to_extend = (
        *(sampler.params, sampler.prefix, sampling.both(definition, one)),
        *(array(rows, beams, width), array(rows), array()),
        *(inputs.forbidden, inputs.seed, inputs.batch.example_id),
    )
    slots = (rows, attack.num_candidates, slot_width(attack))
    run_score = functools.partial(
        score, victim.definition, at_once=frame.pass_of(attack, slot_width(attack), inputs)
    )
    to_score = (victim.params, (victim.prefix,), inputs.batch, array(*slots))
    found = {
        "encode_prefix": frame.prefix_program(victim, inputs.batch),
        "extend": Program(run_extend, to_extend),
        "score": Program(run_score, (*to_score, array(*slots, dtype=jnp.bool_))),
    }
    if inputs.companion is not None:
        found["encode_companion_prefix"] = frame.prefix_program(inputs.companion, inputs.batch)
    return found
