"""Random token search: independent random slots, the first that breaks the victim wins.

Iteration ``i`` of an example is one random slot; it does not depend on the iterations before it, so
many are scored at once. From the first success on, the record repeats that slot: the success curve
is monotone.

As RandomToken in Howe et al. 2024 (arXiv 2407.18213), except: what is scored are the ids that the
slot's text really has inside the prompt, in a masked slot of twice the drawn length. A draw that
does not fit (too long, or it changes its surroundings) is drawn again under the next key of its own
sequence, and counted.
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
from robustjax.errors import UserError

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
    logits: Float[np.ndarray, "B C N"]
    redrawn: Int[np.ndarray, " B"]


def slot_width(attack: RandomToken) -> int:
    """Most tokens that a slot can have."""
    return 2 * attack.num_tokens


def search(attack: RandomToken, run: frame.BatchRun, tick: Callable[[int], None]) -> frame.Outcome:
    """Runs the attack on one batch; ``tick`` hears of each pass's iterations."""
    tried = []
    for iterations in passes(attack):
        tried.append(step(attack, run, iterations))
        tick(int((iterations <= attack.num_iterations).sum()))
    count = attack.num_iterations
    slots, mask, loss, success, logits = (
        np.concatenate([np.asarray(getattr(one, field)) for one in tried], axis=1)[:, :count]
        for field in ("slots", "mask", "loss", "success", "logits")
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
        logits[rows, shown[:, -1]],
        sum(one.redrawn for one in tried),
        run.lengths * count + mask.sum((1, 2)),
    )


def passes(attack: RandomToken) -> list[Int[np.ndarray, " C"]]:
    """Iteration numbers of each pass; the last one is filled up with iterations not asked for."""
    width = min(attack.iterations_per_pass, attack.num_iterations)
    starts = range(1, attack.num_iterations + 1, width)
    return [np.arange(start, start + width, dtype=np.uint32) for start in starts]


def step(attack: RandomToken, run: frame.BatchRun, iterations: Int[np.ndarray, " C"]) -> Tried:
    """Draws and scores the slots of these iterations."""
    slots, mask, redrawn = draw_fitting(attack, run, iterations)
    victim = run.victim
    scores = score(
        victim.definition,
        victim.params,
        run.prefix,
        run.batch,
        run.put(slots),
        run.put(mask),
        chunk=slots.shape[1],
    )
    return Tried(slots, mask, *frame.fetch(scores), redrawn)


def programs(attack: RandomToken, run: frame.BatchRun) -> list[frame.Program]:
    """What the search executes on one batch, for counting its FLOPs."""
    count, runs = len(passes(attack)[0]), len(passes(attack))
    shape = (len(run.prompts), count, 2 * attack.num_tokens)
    slots = jax.ShapeDtypeStruct(shape, jnp.int32)
    mask = jax.ShapeDtypeStruct(shape, jnp.bool_)
    run_score = functools.partial(score, run.victim.definition, chunk=count)
    arguments = (run.victim.params, run.prefix, run.batch, slots, mask)
    return [frame.Program(run_score, arguments, runs)]


def draw_fitting(
    attack: RandomToken, run: frame.BatchRun, iterations: Int[np.ndarray, " C"]
) -> tuple[Int[np.ndarray, "B C W"], Bool[np.ndarray, "B C W"], Int[np.ndarray, " B"]]:
    """Draws slots until all of them fit.

    Returns:
        Re-tokenised slots, their mask, and how many draws of each example were thrown away.

    Raises:
        UserError: if some slot finds no fitting draw in 1,000 attempts.
    """
    tokenizer = run.victim.tokenizer
    width = 2 * attack.num_tokens
    attempts = np.zeros((len(run.prompts), len(iterations)), np.uint32)
    allowed = run.victim.put_replicated(tokenizer.allowed_attack_ids)
    put = run.victim.put_examples
    while True:
        drawn = draw(
            run.seed,
            run.batch.example_id,
            jnp.asarray(iterations),
            put(attempts),
            allowed,
            width=attack.num_tokens,
        )
        slots, mask, fits = retokenize.retokenise(
            tokenizer, run.surroundings, np.asarray(drawn), width
        )
        if fits.all():
            return slots, mask, attempts.sum(1, dtype=np.int64)
        attempts += ~fits
        if attempts.max() >= _MOST_ATTEMPTS:
            row = int(attempts.max(1).argmax())
            raise UserError(
                f"example {run.prompts[row].example.example_id}: no random slot of "
                f"num_tokens={attack.num_tokens} stands cleanly in its text in {_MOST_ATTEMPTS} "
                "draws; use another position or tokenizer"
            )


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
