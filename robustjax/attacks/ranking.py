"""Which of GCG's candidates are scored, by which model, and how.

As a rule the victim scores all of them, part by part (see ``replacements``). Options change that:
candidates with several replaced tokens are scored plainly; scoring in bfloat16 ranks them by a
narrow copy of the victim; probe sampling (Zhao et al. 2024, arXiv 2403.01251) lets a smaller model
choose which of them the victim scores.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from robustjax.attacks import frame, probe
from robustjax.attacks.frame import (
    BatchRun,
    Inputs,
    Program,
    Reader,
    in_bfloat16,
    prefix_program,
    to_bfloat16,
)
from robustjax.attacks.objective import encode_prefix, score
from robustjax.attacks.passes import Pass
from robustjax.attacks.replacements import (
    Part,
    Replacements,
    parts_of,
    score_replacements,
    starts_of,
)
from robustjax.attacks.verdict import Scores
from robustjax.models.transformer import Cache
from robustjax.runtime.rows import anywhere


@runtime_checkable
class Settings(frame.ScoredInPasses, Protocol):
    """What GCG's settings say of ranking; see ``gcg.GCG``."""

    @property
    def num_tokens(self) -> int:
        """``A``, length of the attack slot."""

    @property
    def top_k(self) -> int:
        """Tokens that are drawn from at each position."""

    @property
    def num_replacements(self) -> int:
        """Tokens that a candidate replaces."""

    @property
    def probe_size(self) -> int:
        """Candidates of the probe set; 0 without probe sampling."""

    @property
    def num_others(self) -> int:
        """Most candidates that are scored beside the probe set."""

    @property
    def bf16_scoring(self) -> bool:
        """Whether candidates are ranked in bfloat16."""


class Ranked(NamedTuple):
    """Candidates with their scores.

    Attributes:
        slots: ``S`` of the candidates that were drawn.
        valid: those that survived the filter and may be chosen.
        guessed: survivors that the companion scored.
        calls: runs of each program, for all rows or for each.
    """

    slots: Int[Array, "B S A"]
    scores: Scores
    valid: Bool[Array, "B S"]
    guessed: Int[np.ndarray, " B"]
    calls: dict[str, Int[np.ndarray, "*B"]]


def rank(
    attack: Settings,
    run: BatchRun,
    incumbent: Cache,
    proposed: Replacements,
    slots: Int[Array, "B A"],
    iteration: int,
) -> Ranked:
    """Scores the candidates that one iteration drew, while the host filters them.

    Args:
        incumbent: keys and values of the slots that the candidates differ from.
        slots: these slots.
    """
    if attack.probe_size:
        return _rank_by_probe(attack, run, proposed, slots, iteration)
    at_once = frame.pass_of(attack, attack.num_tokens, run.inputs)
    reader = run.narrow if attack.bf16_scoring else run.inputs.victim
    known = (reader.definition, reader.params)
    calls = {name: np.array(int(iteration == 1)) for name in _extra_prefixes(attack)}
    calls |= {"score_again": np.array(1)} if attack.bf16_scoring else {}
    if attack.num_replacements > 1:
        mask = run.full_mask(proposed.slots.shape)
        to_plain = (*known, (reader.prefix,), run.batch, proposed.slots, mask)
        scores = score(*to_plain, at_once=at_once)
        valid = _survivors(run, proposed, slots)
        calls["score"] = np.array(1)
    else:
        if attack.bf16_scoring:
            incumbent = jax.tree.map(to_bfloat16, incumbent)
        parts = cut(attack, run.inputs)

        def score_parts(proposed: Replacements) -> Scores:
            arguments = (*known, reader.prefix, run.batch, slots, incumbent, proposed)
            return score_replacements(*arguments, at_once=at_once, parts=parts)

        scores = score_parts(proposed)
        valid = _survivors(run, proposed, slots)
        scores, calls["score_replacements"] = _in_time(run, score_parts, proposed, scores, parts)
    return Ranked(proposed.slots, scores, run.put(valid), np.zeros(len(valid), int), calls)


def _in_time(
    run: BatchRun,
    score_parts: Callable[[Replacements], Scores],
    proposed: Replacements,
    scores: Scores,
    parts: tuple[Part, ...],
) -> tuple[Scores, Int[np.ndarray, " B"]]:
    """Scores anew, by the same program, what was run from after its place; on the host.

    Args:
        score_parts: scores candidates, each as its row is.
        proposed: the candidates.
        scores: of them.
        parts: see ``replacements.parts_of``.

    Returns:
        The scores, and how often each example needed the program.
    """
    starts = starts_of(parts)
    places = run.fetch(proposed.places)
    late = places < starts
    runs = np.ones(len(late), np.int64)
    if not anywhere(bool(late.any()))[0]:
        return scores, runs
    slots = run.fetch(proposed.slots)
    mended = jax.tree.map(np.array, run.fetch(scores))
    while anywhere(bool(late.any()))[0]:
        runs += late.any(-1)
        order = np.argsort(~late, axis=1, kind="stable")  # to the front, where parts start early
        example = np.arange(len(order))[:, None]
        again = run.fetch(
            score_parts(run.put(Replacements(slots[example, order], places[example, order])))
        )
        row, at = np.nonzero(late[example, order] & (places[example, order] >= starts))
        candidate = order[row, at]
        for old, new in zip(mended, again, strict=True):
            old[row, candidate] = new[row, at]
        late[row, candidate] = False
    return run.put(mended), runs


def _rank_by_probe(
    attack: Settings,
    run: BatchRun,
    proposed: Replacements,
    slots: Int[Array, "B A"],
    iteration: int,
) -> Ranked:
    inputs = run.inputs
    companion = inputs.companion
    assert companion is not None  # search.check_companion
    guess = score(
        *(companion.definition, companion.params, (companion.prefix,), run.batch),
        *(proposed.slots, run.full_mask(proposed.slots.shape)),
        at_once=frame.pass_of(attack, attack.num_tokens, inputs),
    ).loss
    valid = _survivors(run, proposed, slots)
    some, scores, may_be_chosen = probe.score_some(
        *(inputs.victim.definition, inputs.victim.params, inputs.victim.prefix, run.batch),
        *(proposed.slots, guess, run.put(valid), inputs.seed, np.uint32(iteration)),
        probe_size=attack.probe_size,
        num_others=attack.num_others,
        shards=inputs.shards,
    )
    calls = {"guess": np.array(1), "score_some": np.array(1)}
    calls |= {name: np.array(int(iteration == 1)) for name in _extra_prefixes(attack)}
    return Ranked(some, scores, may_be_chosen, valid.sum(-1), calls)


def _survivors(
    run: BatchRun, proposed: Replacements, slots: Int[Array, "B A"]
) -> Bool[np.ndarray, "B C"]:
    return run.survivors(*run.fetch((proposed.slots, slots)))


def score_again(run: BatchRun, slots: Int[Array, "B A"]) -> Scores:
    """Scores one slot of each example as the victim is, whatever ranked it."""
    victim = run.inputs.victim
    whole = run.full_mask((slots.shape[0], 1, slots.shape[1]))
    known = (victim.definition, victim.params, (victim.prefix,), run.batch)
    return score(*known, slots[:, None], whole, at_once=Pass(slots.shape[0], 1))


def cut(attack: Settings, inputs: Inputs) -> tuple[Part, ...]:
    """What the candidates are cut into by their places."""
    top_k = min(attack.top_k, inputs.num_allowed)
    drawn = (attack.num_tokens, top_k, attack.num_candidates)
    at_once = frame.pass_of(attack, attack.num_tokens, inputs)
    return parts_of(inputs.rows, *drawn, at_once.candidates)


def _extra_prefixes(attack: Settings) -> list[str]:
    """Names of the programs that encode the prefixes for a model other than the victim."""
    if attack.probe_size:
        return ["encode_companion_prefix"]
    return ["encode_narrow_prefix"] if attack.bf16_scoring else []


def programs(
    attack: Settings, inputs: Inputs, incumbent: Cache, proposed: Replacements
) -> dict[str, Program]:
    """What scores the candidates of a batch, by name; see ``frame.Program``."""
    batch, victim = inputs.batch, inputs.victim
    at_once = frame.pass_of(attack, attack.num_tokens, inputs)
    mask = jax.ShapeDtypeStruct(proposed.slots.shape, jnp.bool_)

    def plain(reader: Reader, count: int, at_once: Pass) -> Program:
        shape = (inputs.rows, count, attack.num_tokens)
        slots = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)
        function = functools.partial(score, reader.definition, at_once=at_once)
        return Program(function, (reader.params, (reader.prefix,), batch, *slots))

    if attack.probe_size:
        assert inputs.companion is not None
        run_some = functools.partial(
            probe.score_some,
            victim.definition,
            probe_size=attack.probe_size,
            num_others=attack.num_others,
            shards=inputs.shards,
        )
        guess = jax.ShapeDtypeStruct(mask.shape[:2], jnp.float32)
        survive = jax.ShapeDtypeStruct(mask.shape[:2], jnp.bool_)
        number = jax.ShapeDtypeStruct((), jnp.uint32)
        to_some = (proposed.slots, guess, survive, number, number)
        return {
            "encode_companion_prefix": prefix_program(inputs.companion, batch),
            "guess": plain(inputs.companion, attack.num_candidates, at_once),
            "score_some": Program(run_some, (victim.params, victim.prefix, batch, *to_some)),
        }
    found: dict[str, Program] = {}
    reader = victim
    if attack.bf16_scoring:
        reader = _narrow(victim, batch)
        incumbent = jax.eval_shape(lambda tree: jax.tree.map(to_bfloat16, tree), incumbent)
        found["encode_narrow_prefix"] = prefix_program(reader, batch)
        found["score_again"] = plain(victim, 1, Pass(inputs.rows, 1))
    if attack.num_replacements > 1:
        found["score"] = plain(reader, attack.num_candidates, at_once)
    else:
        run_parts = functools.partial(
            score_replacements,
            reader.definition,
            at_once=at_once,
            parts=cut(attack, inputs),
        )
        current = jax.ShapeDtypeStruct((inputs.rows, attack.num_tokens), jnp.int32)
        to_parts = (reader.params, reader.prefix, batch, current, incumbent, proposed)
        found["score_replacements"] = Program(run_parts, to_parts)
    return found


def _narrow(reader: Reader, batch: Any) -> Reader:
    """Shapes of a reader in bfloat16."""
    definition = in_bfloat16(reader.definition)
    params = jax.eval_shape(lambda tree: jax.tree.map(to_bfloat16, tree), reader.params)
    encode = functools.partial(encode_prefix, definition)
    return Reader(definition, params, jax.eval_shape(encode, params, batch))
