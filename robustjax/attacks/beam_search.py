"""Beam search over random replacements, without gradients (Howe et al. 2024, arXiv 2407.18213).

Each iteration draws ``num_candidates`` slots: candidate ``i`` is beam member ``i`` modulo the size
of the beam with one random token at one random position. Those that survive retokenisation are
scored, and the ``beam_width`` of lowest loss are the new beam; the old one is not kept. What is
recorded is the best of the beam. When none survives, the beam stays.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from robustjax.attacks import candidates, frame
from robustjax.attacks.frame import BatchRun, Inputs, Pending, Placed, Program, Seen
from robustjax.attacks.objective import score
from robustjax.attacks.passes import Pass
from robustjax.attacks.retokenize import SlotText, clean_start
from robustjax.attacks.verdict import Scores
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Settings of the attack.

    Attributes:
        num_iterations: search steps.
        num_tokens: ``A``, length of the attack slot in tokens.
        num_candidates: ``C``, candidates scored in each iteration.
        beam_width: ``K``, slots that are gone on with.
        position: where the slot stands, as a fraction of the characters of the modifiable chunk.
        untargeted: aim for any wrong class instead of the example's target.
        candidate_chunk: candidates of each example scored in one pass; bounds the memory, changes
            losses by rounding only. 0 takes what makes 4,096 tokens, of few examples rather than of
            few candidates (see ``passes``).
        stop_at_success: leave an example alone once it was successful.
    """

    num_iterations: int = 10
    num_tokens: int = 10
    num_candidates: int = 128
    beam_width: int = 5
    position: float = 1.0
    untargeted: bool = False
    candidate_chunk: int = 0
    stop_at_success: bool = False

    name = "beam_search"
    needs_companion = False

    def __post_init__(self) -> None:
        frame.check_positive(self, "num_iterations", "num_tokens", "num_candidates", "beam_width")
        frame.check_position(self.position)
        frame.check_chunk(self.candidate_chunk, "num_candidates", self.num_candidates)
        if self.beam_width > self.num_candidates:
            raise UserError(
                f"beam_width={self.beam_width} is more than num_candidates={self.num_candidates}; "
                "lower it"
            )

    @property
    def variant(self) -> str:
        """Names of the options in use that change the algorithm, joined by ``+``."""
        return frame.variant(untargeted=self.untargeted, stop_at_success=self.stop_at_success)


class Beam(NamedTuple):
    """The slots that are gone on with, the best first, and what the victim makes of that one.

    Attributes:
        members: ``[B, K, A]``.
        is_member: a beam may hold fewer.
        loss: of the best, and so on.
        num_valid: candidates that it was chosen from.
    """

    members: Int[Placed, "B K A"]
    is_member: Bool[Placed, "B K"]
    loss: Float[Placed, " B"]
    success: Bool[Placed, " B"]
    answer: Float[Placed, "B N"]
    num_valid: Int[Placed, " B"]

    @property
    def slots(self) -> Int[Placed, "B A"]:
        """The best slots."""
        return self.members[:, 0]


def slot_width(attack: BeamSearch) -> int:
    """Most tokens that a slot can have."""
    return attack.num_tokens


def start(
    attack: BeamSearch, tokenizer: Tokenizer, surrounding: SlotText, seed: int, example_id: int
) -> list[int] | None:
    """Ids of a slot to start from, or None if none stands cleanly in its prompt."""
    return clean_start(tokenizer, surrounding, attack.num_tokens, seed, example_id)


def init(attack: BeamSearch, run: BatchRun) -> Beam:
    """A beam of the starting slot alone, scored in case nothing ever survives."""
    slots = np.array([prompt.slot for prompt in run.prompts], np.int32)
    members = np.repeat(slots[:, None], attack.beam_width, axis=1)
    victim = run.inputs.victim
    scores = run.fetch(
        score(
            *(victim.definition, victim.params, (victim.prefix,), run.batch),
            *(run.put(slots[:, None]), run.full_mask((run.size, 1, attack.num_tokens))),
            at_once=Pass(run.size, 1),
        )
    )
    is_member = np.zeros(members.shape[:2], bool)
    is_member[:, 0] = True
    of_start = (scores.loss[:, 0], scores.success[:, 0], scores.answer[:, 0])
    return Beam(*run.put((members, is_member, *of_start, np.zeros(len(slots), np.int32))))


def iterations_of_step(attack: BeamSearch, iteration: int) -> int:
    """How many iterations the step that begins with ``iteration`` does."""
    return 1


def kept(state: Beam) -> Beam:
    """What of a state is saved: all."""
    return state


def revive(attack: BeamSearch, run: BatchRun, saved: Beam) -> Beam:
    """A saved state on the device."""
    return Beam(*run.put(tuple(saved)))


def failures(attack: BeamSearch, run: BatchRun, state: Beam) -> dict[int, str]:
    """Rows that could not be attacked: none."""
    return {}


def step(attack: BeamSearch, run: BatchRun, state: Beam, iteration: int) -> tuple[Beam, Pending]:
    """One iteration: the host filters candidates while the device scores them."""
    victim = run.inputs.victim
    parents, proposed = draw(
        *(state, run.seed, run.batch.example_id, np.uint32(iteration), run.allowed),
        count=attack.num_candidates,
    )
    scores = score(
        *(victim.definition, victim.params, (victim.prefix,), run.batch),
        *(proposed, run.full_mask(proposed.shape)),
        at_once=frame.pass_of(attack, attack.num_tokens, run.inputs),
    )
    valid = run.survivors(*run.fetch((proposed, parents)))
    new = select(state, proposed, scores, run.put(valid))
    at_first = np.array(int(iteration == 1))
    calls = {"encode_prefix": at_first, "score_start": at_first, "score": np.array(1)}
    prompt = run.lengths + attack.num_tokens

    def report(beam: Beam) -> Seen:
        num_valid = np.asarray(beam.num_valid, np.int64)
        return frame.one_iteration(
            beam, num_valid=num_valid, tokens=prompt * num_valid, calls=calls
        )

    return new, Pending(new, report)


def programs(attack: BeamSearch, inputs: Inputs) -> dict[str, Program]:
    """What a search runs on a batch, by name."""
    victim = inputs.victim

    def scoring(count: int, at_once: Pass) -> Program:
        shape = (inputs.rows, count, attack.num_tokens)
        slots = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)
        function = functools.partial(score, victim.definition, at_once=at_once)
        return Program(function, (victim.params, (victim.prefix,), inputs.batch, *slots))

    return {
        "encode_prefix": frame.prefix_program(victim, inputs.batch),
        "score_start": scoring(1, Pass(inputs.rows, 1)),
        "score": scoring(attack.num_candidates, frame.pass_of(attack, attack.num_tokens, inputs)),
    }


@functools.partial(jax.jit, static_argnames=("count",))
def draw(
    beam: Beam,
    seed: UInt32[Array, ""],
    example_id: UInt32[Array, " B"],
    iteration: UInt32[Array, ""],
    allowed: Int[Array, " V"],
    *,
    count: int,
) -> tuple[Int[Array, "B C A"], Int[Array, "B C A"]]:
    """The parents of the candidates, and the candidates.

    A draw is keyed by its example, its iteration and its number.
    """
    numbers = jnp.arange(count, dtype=jnp.uint32)
    width = beam.members.shape[-1]

    def of_example(key: Array, members: Array, size: Array) -> tuple[Array, Array]:
        def one(number: Array) -> tuple[Array, Array]:
            keys = jax.random.split(jax.random.fold_in(key, number))
            parent = members[number % size]
            place = jax.random.randint(keys[0], (), 0, width)
            token = allowed[jax.random.randint(keys[1], (), 0, allowed.shape[0])]
            return parent, parent.at[place].set(token)

        return jax.vmap(one)(numbers)

    keys = candidates.example_keys(seed, example_id, iteration)
    sizes = beam.is_member.sum(-1, dtype=jnp.uint32)
    return jax.vmap(of_example)(keys, beam.members, sizes)


@jax.jit
def select(
    beam: Beam, proposed: Int[Array, "B C A"], scores: Scores, valid: Bool[Array, "B C"]
) -> Beam:
    """The valid candidates of lowest loss (the first on ties), or the beam if none is valid."""
    losses = jnp.where(valid, scores.loss, jnp.inf)
    order = jnp.argsort(losses, axis=-1)[:, : beam.members.shape[1]]
    best = order[:, 0]
    moves = valid.any(-1)
    members = jnp.take_along_axis(proposed, order[..., None], axis=1)
    is_member = jnp.take_along_axis(valid, order, axis=1)

    def where(new: Array, old: Array) -> Array:
        return jnp.where(moves.reshape(moves.shape + (1,) * (new.ndim - 1)), new, old)

    def of_best(x: Array) -> Array:
        index = best.reshape(best.shape + (1,) * (x.ndim - 1))
        return jnp.take_along_axis(x, index, axis=1)[:, 0]

    return Beam(
        where(members, beam.members),
        where(is_member, beam.is_member),
        where(of_best(scores.loss), beam.loss),
        where(of_best(scores.success), beam.success),
        where(of_best(scores.answer), beam.answer),
        valid.sum(-1, dtype=jnp.int32),
    )
