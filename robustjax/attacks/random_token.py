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
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from robustjax.attacks import candidates, frame, retokenize
from robustjax.attacks.objective import score
from robustjax.attacks.retokenize import SlotText
from robustjax.data.tokens import Tokenizer

_MOST_ATTEMPTS = 1_000


@dataclasses.dataclass(frozen=True)
class RandomToken:
    """Settings of the attack.

    Attributes:
        num_iterations: random slots tried for each example.
        num_tokens: tokens drawn for a slot.
        position: where the slot stands, as a fraction of the characters of the modifiable chunk.
        iterations_per_pass: slots of each example scored in one pass; bounds the memory.
    """

    num_iterations: int = 1280
    num_tokens: int = 10
    position: float = 1.0
    iterations_per_pass: int = 64

    name = "random_token"

    def __post_init__(self) -> None:
        frame.check_positive(self, "num_iterations", "num_tokens", "iterations_per_pass")
        frame.check_position(self.position)


class Tried(NamedTuple):
    """The slots of one pass and what the victim made of them, ``[B, C, ...]`` on the host."""

    slots: Int[np.ndarray, "B C W"]
    mask: Bool[np.ndarray, "B C W"]
    loss: Float[np.ndarray, "B C"]
    success: Bool[np.ndarray, "B C"]
    answer: Float[np.ndarray, "B C N"]


class Drawn(NamedTuple):
    """Slots that fit.

    Attributes:
        slots: re-tokenised ids.
        mask: true at real ids; a row is empty where nothing fitted or nothing was asked for.
        redrawn: draws of each example that were thrown away.
        stuck: examples with a slot that nothing fitted.
    """

    slots: Int[np.ndarray, "B C W"]
    mask: Bool[np.ndarray, "B C W"]
    redrawn: Int[np.ndarray, " B"]
    stuck: Bool[np.ndarray, " B"]


def slot_width(attack: RandomToken) -> int:
    """Most tokens that a slot can have."""
    return 2 * attack.num_tokens


def start(
    attack: RandomToken, tokenizer: Tokenizer, surrounding: SlotText, seed: int, example_id: int
) -> list[int]:
    """Nothing: no slot depends on one before it."""
    return []


def search(attack: RandomToken, run: frame.BatchRun, tick: Callable[[int], None]) -> frame.Outcome:
    """Runs the attack on one batch; ``tick`` hears of each pass's iterations."""
    tried = []
    redrawn = np.zeros(len(run.prompts), np.int64)
    stuck = np.zeros(len(run.prompts), bool)
    for iterations in passes(attack):
        drawn = draw_fitting(attack, run, iterations, stuck)
        tried.append(step(run, drawn))
        redrawn += drawn.redrawn
        stuck |= drawn.stuck
        tick(int((iterations <= attack.num_iterations).sum()))
    count = attack.num_iterations
    slots, mask, loss, success, answer = (
        np.concatenate([np.asarray(getattr(one, field)) for one in tried], axis=1)[:, :count]
        for field in ("slots", "mask", "loss", "success", "answer")
    )
    rows = np.arange(len(run.prompts))
    # From the first success on the record repeats the slot that succeeded.
    first = np.where(success.any(1), success.argmax(1), count)
    shown = np.minimum(np.arange(count)[None], first[:, None])  # [B, I]
    kept = [
        [slots[row, i][mask[row, i]].tolist() for row, i in enumerate(column)] for column in shown.T
    ]
    return frame.Outcome(
        kept,
        np.take_along_axis(loss, shown, 1).T,
        np.take_along_axis(success, shown, 1).T,
        np.ones((count, len(rows)), np.int64),
        answer[rows, shown[:, -1]],
        redrawn,
        run.lengths * count + mask.sum((1, 2)),
        {
            int(row): f"no random slot of {attack.num_tokens} tokens stands cleanly in its text at "
            f"position {attack.position} in {_MOST_ATTEMPTS} draws"
            for row in np.flatnonzero(stuck)
        },
    )


def passes(attack: RandomToken) -> list[UInt32[np.ndarray, " C"]]:
    """Iteration numbers of each pass; the last one is filled up with iterations not asked for."""
    width = min(attack.iterations_per_pass, attack.num_iterations)
    starts = range(1, attack.num_iterations + 1, width)
    return [np.arange(start, start + width, dtype=np.uint32) for start in starts]


def step(run: frame.BatchRun, drawn: Drawn) -> Tried:
    """Scores the slots of one pass."""
    slots, mask = drawn.slots, drawn.mask
    victim = run.victim
    scores = score(
        victim.definition,
        victim.params,
        (run.prefix,),
        run.batch,
        run.put(slots),
        run.put(mask),
        chunk=slots.shape[1],
    )
    return Tried(slots, mask, *frame.fetch(scores))


def programs(attack: RandomToken, run: frame.BatchRun) -> list[frame.Program]:
    """What the search executes on one batch, for counting its FLOPs."""
    count, runs = len(passes(attack)[0]), len(passes(attack))
    shape = (len(run.prompts), count, 2 * attack.num_tokens)
    slots = jax.ShapeDtypeStruct(shape, jnp.int32)
    mask = jax.ShapeDtypeStruct(shape, jnp.bool_)
    run_score = functools.partial(score, run.victim.definition, chunk=count)
    arguments = (run.victim.params, (run.prefix,), run.batch, slots, mask)
    return [frame.Program(run_score, arguments, runs)]


def draw_fitting(
    attack: RandomToken,
    run: frame.BatchRun,
    iterations: UInt32[np.ndarray, " C"],
    given_up: Bool[np.ndarray, " B"],
) -> Drawn:
    """Draws until every slot fits; examples given up and iterations not asked for get none."""
    tokenizer, put = run.victim.tokenizer, run.victim.put_examples
    allowed = run.victim.put_replicated(tokenizer.allowed_attack_ids)
    shape = (len(run.prompts), len(iterations))
    slots = np.full((*shape, slot_width(attack)), tokenizer.pad_id, np.int32)
    mask = np.zeros(slots.shape, bool)
    attempts = np.zeros(shape, np.uint32)
    wanted = ~given_up[:, None] & (iterations <= attack.num_iterations)
    while wanted.any():
        drawn = draw(
            run.seed,
            run.batch.example_id,
            jnp.asarray(iterations),
            put(attempts),
            allowed,
            width=attack.num_tokens,
        )
        rows, columns = np.nonzero(wanted)
        new_slots, new_mask, fits = retokenize.retokenise(
            tokenizer,
            [run.prompts[row].surrounding for row in rows],
            np.asarray(drawn)[rows, columns][:, None],
            slots.shape[-1],
        )
        slots[rows, columns], mask[rows, columns] = new_slots[:, 0], new_mask[:, 0]
        wanted[rows, columns] = ~fits[:, 0]
        attempts += wanted
        wanted &= attempts < _MOST_ATTEMPTS
    stuck = (attempts >= _MOST_ATTEMPTS).any(1)
    redrawn = attempts.sum(1, dtype=np.int64)
    return Drawn(slots, mask, redrawn, np.asarray(stuck))


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
