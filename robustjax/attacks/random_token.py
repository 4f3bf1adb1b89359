"""Random token search: independent random slots, the first that breaks the victim wins.

Iteration ``i`` of an example is one random slot; it does not depend on the iterations before it, so
many are scored at once. From the first success on, the record repeats that slot: the success curve
is monotone.

As RandomToken in Howe et al. 2024 (arXiv 2407.18213), except: what is scored are the ids that the
slot's text really has inside the prompt, in a masked slot of twice the drawn length. A draw that
does not fit (too long, or it changes its surroundings) is drawn again under the next key of its own
sequence, and counted. An example for which 1,000 draws of one slot do not fit is not attacked.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from robustjax.attacks import candidates, frame, retokenize
from robustjax.attacks.frame import BatchRun, Inputs, Pending, Program, Seen
from robustjax.attacks.objective import score, tail_width
from robustjax.attacks.passes import Pass, fitting
from robustjax.attacks.retokenize import SlotText
from robustjax.data.tokens import Tokenizer
from robustjax.runtime.rows import anywhere

_MOST_ATTEMPTS = 1_000


@dataclasses.dataclass(frozen=True)
class RandomToken:
    """Settings of the attack.

    Attributes:
        num_iterations: random slots tried for each example.
        num_tokens: tokens drawn for a slot.
        position: where the slot stands, as a fraction of the characters of the modifiable chunk.
        iterations_per_pass: most slots of each example that are drawn and scored together; bounds
            the memory. See ``passes`` for how many examples that is at once.
        untargeted: aim for any wrong class instead of the example's target.
        stop_at_success: try no more slots of an example once one was successful.
    """

    num_iterations: int = 1280
    num_tokens: int = 10
    position: float = 1.0
    iterations_per_pass: int = 64
    untargeted: bool = False
    stop_at_success: bool = False

    name = "random_token"
    needs_companion = False

    def __post_init__(self) -> None:
        frame.check_positive(self, "num_iterations", "num_tokens", "iterations_per_pass")
        frame.check_position(self.position)

    @property
    def variant(self) -> str:
        """Names of the options in use that change the algorithm, joined by ``+``."""
        return frame.variant(untargeted=self.untargeted, stop_at_success=self.stop_at_success)


class Found(NamedTuple):
    """The first slot of each example that broke the victim, on the host.

    Attributes:
        is_found: whether there is one yet; if not, the rest means nothing.
        stuck: examples that came to a slot that nothing fitted before one that broke the victim.
    """

    is_found: Bool[np.ndarray, " B"]
    slots: Int[np.ndarray, "B W"]
    mask: Bool[np.ndarray, "B W"]
    loss: Float[np.ndarray, " B"]
    answer: Float[np.ndarray, "B N"]
    stuck: Bool[np.ndarray, " B"]


class Drawn(NamedTuple):
    """Slots that fit.

    Attributes:
        slots: re-tokenised ids.
        mask: true at real ids; a row is empty where nothing fitted or nothing was asked for.
        redrawn: draws that were thrown away for each slot.
        stuck: slots that nothing fitted.
    """

    slots: Int[np.ndarray, "B C W"]
    mask: Bool[np.ndarray, "B C W"]
    redrawn: Int[np.ndarray, "B C"]
    stuck: Bool[np.ndarray, "B C"]


def slot_width(attack: RandomToken) -> int:
    """Most tokens that a slot can have."""
    return 2 * attack.num_tokens


def start(
    attack: RandomToken, tokenizer: Tokenizer, surrounding: SlotText, seed: int, example_id: int
) -> list[int]:
    """Nothing: no slot depends on one before it."""
    return []


def init(attack: RandomToken, run: BatchRun) -> Found:
    """Nothing is found yet."""
    rows, width = len(run.prompts), slot_width(attack)
    return Found(
        np.zeros(rows, bool),
        np.zeros((rows, width), np.int32),
        np.zeros((rows, width), bool),
        np.zeros(rows, np.float32),
        np.zeros((rows, frame.answer_width(run)), np.float32),
        np.zeros(rows, bool),
    )


def iterations_of_step(attack: RandomToken, iteration: int) -> int:
    """How many iterations the step that begins with ``iteration`` does: those of a pass."""
    return min(pass_width(attack), attack.num_iterations - iteration + 1)


def pass_width(attack: RandomToken) -> int:
    """Slots of each example that are scored in one pass."""
    return min(attack.iterations_per_pass, attack.num_iterations)


def _pass_of(attack: RandomToken, inputs: Inputs) -> Pass:
    tail = tail_width(slot_width(attack), inputs.batch)
    return fitting(inputs.rows, pass_width(attack), tail, inputs.shards)


def kept(state: Found) -> Found:
    """What of a state is saved: all."""
    return state


def revive(attack: RandomToken, run: BatchRun, saved: Found) -> Found:
    """A saved state as it is used."""
    return saved


def failures(attack: RandomToken, run: BatchRun, state: Found) -> dict[int, str]:
    """Rows for which nothing fitted."""
    reason = (
        f"no random slot of {attack.num_tokens} tokens stands cleanly in its text at position "
        f"{attack.position} in {_MOST_ATTEMPTS} draws"
    )
    return {int(row): reason for row in np.flatnonzero(state.stuck)}


def step(attack: RandomToken, run: BatchRun, state: Found, iteration: int) -> tuple[Found, Pending]:
    """Scores the slots of one pass; its last one is filled up with iterations not asked for."""
    count = iterations_of_step(attack, iteration)
    iterations = np.arange(iteration, iteration + pass_width(attack), dtype=np.uint32)
    drawn = draw_fitting(attack, run, iterations, state.stuck)
    victim = run.inputs.victim
    scores = run.fetch(
        score(
            *(victim.definition, victim.params, (victim.prefix,), run.batch),
            *(run.put(drawn.slots), run.put(drawn.mask)),
            at_once=_pass_of(attack, run.inputs),
        )
    )
    slots, mask, redrawn, stuck = (x[:, :count] for x in drawn)
    loss, success, answer = (x[:, :count] for x in scores)
    # What comes after a slot that nothing fitted does not count, however much of it is in the pass.
    success = success & ~np.logical_or.accumulate(stuck, axis=1)
    first = np.where(success.any(1), success.argmax(1), count - 1)
    rows = np.arange(len(first))
    old = state.is_found

    def first_of(known: np.ndarray, of_pass: np.ndarray) -> np.ndarray:
        return np.where(_like(old, known), known, of_pass[rows, first])

    is_found = old | success.any(1)
    state = Found(
        is_found=is_found,
        slots=first_of(state.slots, slots),
        mask=first_of(state.mask, mask),
        loss=first_of(state.loss, loss),
        answer=first_of(state.answer, answer),
        stuck=state.stuck | (stuck.any(1) & ~is_found),
    )
    # From the first success on the record repeats the slot that succeeded.
    repeats = old[:, None] | (state.is_found[:, None] & (np.arange(count) >= first[:, None]))

    def shown(known: np.ndarray, of_pass: np.ndarray) -> np.ndarray:
        return np.where(_like(repeats, of_pass), known[:, None], of_pass).swapaxes(0, 1)

    at_first = np.zeros((count, len(rows)), np.int64)
    at_first[0] = 1
    seen = Seen(
        slots=shown(state.slots, slots),
        mask=shown(state.mask, mask),
        loss=shown(state.loss, loss),
        success=repeats.T,
        answer=shown(state.answer, answer),
        num_valid=np.ones_like(redrawn.T),
        num_retokenised=redrawn.T,
        tokens=run.counted_tokens(mask, np.ones(redrawn.shape, bool)).T,
        companion_tokens=np.zeros_like(redrawn.T),
        calls={"score": at_first, "encode_prefix": at_first * int(iteration == 1)},
    )
    return state, Pending(None, lambda _: seen)


def _like(flags: Bool[np.ndarray, "..."], values: np.ndarray) -> np.ndarray:
    """Flags with as many axes as the values that they choose."""
    return flags.reshape(flags.shape + (1,) * (values.ndim - flags.ndim))


def programs(attack: RandomToken, inputs: Inputs) -> dict[str, Program]:
    """What a search runs on a batch, by name."""
    count = pass_width(attack)
    shape = (inputs.rows, count, slot_width(attack))
    slots = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)
    victim = inputs.victim
    run_score = functools.partial(score, victim.definition, at_once=_pass_of(attack, inputs))
    return {
        "encode_prefix": frame.prefix_program(victim, inputs.batch),
        "score": Program(run_score, (victim.params, (victim.prefix,), inputs.batch, *slots)),
    }


def draw_fitting(
    attack: RandomToken,
    run: BatchRun,
    iterations: UInt32[np.ndarray, " C"],
    given_up: Bool[np.ndarray, " B"],
) -> Drawn:
    """Draws until every slot fits; examples given up and iterations not asked for get none."""
    tokenizer = run.victim.tokenizer
    shape = (len(run.prompts), len(iterations))
    slots = np.full((*shape, slot_width(attack)), tokenizer.pad_id, np.int32)
    mask = np.zeros(slots.shape, bool)
    attempts = np.zeros(shape, np.uint32)
    wanted = ~given_up[:, None] & (iterations <= attack.num_iterations)
    while anywhere(bool(wanted.any()))[0]:
        drawn = draw(
            run.seed,
            run.batch.example_id,
            iterations,
            run.put(attempts),
            run.allowed,
            width=attack.num_tokens,
        )
        rows, columns = np.nonzero(wanted)
        new_slots, new_mask, fits = retokenize.retokenise(
            tokenizer,
            [run.prompts[row].surrounding for row in rows],
            run.fetch(drawn)[rows, columns][:, None],
            slots.shape[-1],
        )
        slots[rows, columns], mask[rows, columns] = new_slots[:, 0], new_mask[:, 0]
        wanted[rows, columns] = ~fits[:, 0]
        attempts += wanted
        wanted &= attempts < _MOST_ATTEMPTS
    return Drawn(slots, mask, attempts.astype(np.int64), attempts >= _MOST_ATTEMPTS)


@functools.partial(jax.jit, static_argnames=("width",))
def draw(
    seed: UInt32[Array, ""],
    example_id: UInt32[Array, " B"],
    iterations: UInt32[Array, " C"],
    attempts: UInt32[Array, "B C"],
    allowed: Int[Array, " V"],
    *,
    width: int,
) -> Int[Array, "B C A"]:
    """Random slots, each keyed by its example, iteration and attempt."""

    def one(example: Array, iteration: Array, attempt: Array) -> Array:
        (key,) = candidates.example_keys(seed, example[None], iteration)
        return candidates.random_slot(key, attempt, allowed, width)

    of_example = jax.vmap(one, in_axes=(None, 0, 0))
    return jax.vmap(of_example, in_axes=(0, None, 0))(example_id, iterations, attempts)
