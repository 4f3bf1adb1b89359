"""What every attack stands on: one batch of prepared prompts and what may be asked of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from robustjax.attacks import retokenize
from robustjax.attacks.objective import PromptBatch, encode_prefix, tail_width
from robustjax.attacks.passes import Pass, fitting
from robustjax.attacks.retokenize import SlotText
from robustjax.attacks.verdict import ClassGoal, Goal, TextGoal
from robustjax.data.batching import pad_rows
from robustjax.data.prompts import Example
from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.models.transformer import Cache, Definition, Params
from robustjax.models.victim import Victim
from robustjax.runtime.rows import Rows

Placed = Any
"""An array on the device, fetched to the host, or its mere shape."""


class Program(NamedTuple):
    """A program that a search runs on a batch.

    Attributes:
        function: jitted, static arguments bound.
        arguments: its array arguments, or their shapes.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Reader(NamedTuple):
    """A model that has read what precedes the slots of a batch."""

    definition: Definition
    params: Params
    prefix: Cache


class Inputs(NamedTuple):
    """What the programs of a search take, as arrays or as their shapes.

    Attributes:
        victim: the model under attack.
        companion: a smaller model of its family that the attack asks as well, or None.
        batch: the prompts.
        forbidden: ``[V]`` ids that an attack must not use.
        num_allowed: how many it may use.
        seed: uint32 scalar.
        split: how the rows of a batch are split over devices; None if they are not.
    """

    victim: Reader
    companion: Reader | None
    batch: PromptBatch
    forbidden: Bool[Any, " V"]
    num_allowed: int
    seed: Any
    split: NamedSharding | None = None

    @property
    def rows(self) -> int:
        """``B``, examples of the batch."""
        return self.batch.example_id.shape[0]

    @property
    def shards(self) -> int:
        """Parts that they are split into over devices."""
        if self.split is None:
            return 1
        return self.rows // self.split.shard_shape((self.rows,))[0]


def check_positive(settings: Any, *names: str) -> None:
    """Raises UserError for the first of these fields that is not a positive integer."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name}={value!r} must be an integer of at least 1")


def check_position(position: float) -> None:
    """Raises UserError unless the slot's position is a fraction."""
    if not 0.0 <= position <= 1.0:
        raise UserError(f"position={position!r} must lie between 0 (prefix) and 1 (suffix)")


def check_chunk(chunk: int, name: str, count: int) -> None:
    """Raises UserError unless ``candidate_chunk`` is 0 or divides the number of candidates."""
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 0:
        raise UserError(f"candidate_chunk={chunk!r} must be an integer and not be negative")
    if chunk and count % chunk:
        raise UserError(f"candidate_chunk={chunk} does not divide {name}={count}")


@runtime_checkable
class ScoredInPasses(Protocol):
    """Settings of an attack that scores many candidates of each example."""

    @property
    def candidate_chunk(self) -> int:
        """How many in one pass; 0 takes as many as a pass may have tokens."""

    @property
    def num_candidates(self) -> int:
        """``C``."""


def pass_of(attack: ScoredInPasses, width: int, inputs: Inputs) -> Pass:
    """What is scored at once: what the settings say of each example, else what fits in a pass.

    Args:
        attack: its settings.
        width: most tokens of a slot.
        inputs: of the batch.
    """
    if attack.candidate_chunk:
        return Pass(inputs.rows, attack.candidate_chunk, inputs.shards)
    tail = tail_width(width, inputs.batch)
    return fitting(inputs.rows, attack.num_candidates, tail, inputs.shards)


def variant(**options: bool) -> str:
    """Names of the options in use, joined by ``+``."""
    return "+".join(name for name, is_on in options.items() if is_on)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An example with its slot's surroundings and a slot to start from.

    Attributes:
        example: the example to attack.
        surrounding: what stands around the slot.
        slot: ids that stand cleanly there; empty for an attack that starts from none.
        goal_ids: ids of the text that a language model should go on with; empty for a classifier.
    """

    example: Example
    surrounding: SlotText
    slot: tuple[int, ...]
    goal_ids: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the prompt, and of the text that should follow, without the slot."""
        around = len(self.surrounding.before_ids) + len(self.surrounding.after_ids)
        return around + len(self.goal_ids)


Shape = tuple[int, int, int]
"""Padded tokens before a slot, after it, and of the text to go on with (0 for a classifier)."""


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Prompts that share a program shape.

    Attributes:
        prompts: at most ``batch_size`` of them, in the order given.
        before_width: padded tokens before the slot.
        after_width: padded tokens after it.
        goal_width: padded tokens of the texts that a language model should go on with.
    """

    prompts: tuple[Prompt, ...]
    before_width: int
    after_width: int
    goal_width: int

    @property
    def shape(self) -> Shape:
        """The bucket."""
        return self.before_width, self.after_width, self.goal_width


class Seen(NamedTuple):
    """What iterations of a search showed, on the host; ``I`` iterations, ``B`` rows.

    Attributes:
        slots: ids of the slot after each iteration.
        mask: true at real ids.
        loss: attack loss of these slots.
        success: whether the goal is reached.
        answer: see ``verdict.Scores``.
        num_valid: candidates that could be chosen from.
        num_retokenised: draws that did not fit their slot and were drawn again.
        tokens: token passes of the victim that an iteration stands for by the convention of
            Howe et al. 2024 (arXiv 2407.18213): a forward pass of a token counts 1, a backward pass
            2, with no credit for caching; times ``2 N`` it gives FLOPs.
        companion_tokens: the same of the companion.
        calls: runs of each program, by name.
    """

    slots: Int[np.ndarray, "I B W"]
    mask: Bool[np.ndarray, "I B W"]
    loss: Float[np.ndarray, "I B"]
    success: Bool[np.ndarray, "I B"]
    answer: Float[np.ndarray, "I B N"]
    num_valid: Int[np.ndarray, "I B"]
    num_retokenised: Int[np.ndarray, "I B"]
    tokens: Int[np.ndarray, "I B"]
    companion_tokens: Int[np.ndarray, "I B"]
    calls: dict[str, Int[np.ndarray, "I B"]]

    def ids(self, iteration: int, row: int) -> list[int]:
        """The real ids of one slot."""
        return self.slots[iteration, row][self.mask[iteration, row]].tolist()


class Pending(NamedTuple):
    """Iterations that the device may still be at.

    Attributes:
        arrays: a tree of device arrays.
        report: what was seen, given these arrays on the host.
    """

    arrays: Any
    report: Callable[[Any], Seen]

    def seen(self, run: "BatchRun") -> Seen:
        """What was seen; waits for the device."""
        return self.report(run.fetch(self.arrays))


def answer_width(run: "BatchRun") -> int:
    """``N``, numbers in the answer to one prompt; see ``verdict.Scores``."""
    goal = run.batch.goal
    if isinstance(goal, TextGoal):
        return goal.tokens.shape[1]
    return run.victim.definition.num_classes


class Outcome(NamedTuple):
    """What a search found for one batch.

    Attributes:
        seen: all iterations.
        failures: reasons of the rows that could not be attacked after all; what was seen of them
            means nothing.
    """

    seen: Seen
    failures: dict[int, str]


def joined(history: Sequence[Seen]) -> Seen:
    """Iterations one after the other."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *history)


class BatchRun:
    """One batch of prompts in one bucket, on the device, with its prefix encoded once.

    Of several processes each has its own rows of the batch on its host, and with them alone it
    tokenises and filters; what is `B` on the device is fewer there.

    Attributes:
        victim: the model under attack.
        companion: a second model that is asked, or None.
        everyone: the prompts of all rows.
        rows: which of them are this process's own.
        prompts: the prompts of these.
        batch: the prompts of all rows, on the device.
    """

    def __init__(
        self,
        victim: Victim,
        planned: PlannedBatch,
        batch_size: int,
        seed: int,
        companion: Victim | None = None,
        *,
        count_padding: bool = False,
    ):
        """Fills the batch up, pads the prompts, and encodes what precedes the slots."""
        self.victim, self.companion = victim, companion
        self._count_padding = count_padding
        missing = batch_size - len(planned.prompts)
        self.everyone = planned.prompts + (planned.prompts[-1],) * missing
        self.rows = Rows(victim.mesh, victim.rules, batch_size)
        self.prompts = tuple(self.everyone[row] for row in self.rows.mine)
        pad = victim.tokenizer.pad_id

        def padded(part: str, width: int) -> tuple[np.ndarray, np.ndarray]:
            return pad_rows([getattr(p.surrounding, part) for p in self.prompts], width, pad)

        host = (
            np.array([p.example.example_id for p in self.prompts], np.uint32),
            *padded("before_ids", planned.before_width),
            *padded("after_ids", planned.after_width),
            _goal(self.prompts, planned.goal_width, pad),
        )
        self.batch = PromptBatch(*self.put(host))
        self.seed = np.uint32(seed)
        forbidden = np.ones(victim.definition.config.vocab, bool)
        forbidden[victim.tokenizer.allowed_attack_ids] = False
        self.num_allowed = int((~forbidden).sum())
        self.forbidden: Bool[Array, " V"] = victim.put_replicated(forbidden)
        self.allowed: Int[Array, " V"] = victim.put_replicated(victim.tokenizer.allowed_attack_ids)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """What programs take."""
        other = self.companion
        companion = None if other is None else self._read(other.definition, other.params)
        victim = self._read(self.victim.definition, self.victim.params)
        known = (self.batch, self.forbidden, self.num_allowed, self.seed, self.rows.split)
        return Inputs(victim, companion, *known)

    @functools.cached_property
    def narrow(self) -> Reader:
        """The victim in bfloat16."""
        definition = in_bfloat16(self.victim.definition)
        return self._read(definition, jax.tree.map(to_bfloat16, self.victim.params))

    def _read(self, definition: Definition, params: Params) -> Reader:
        prefix = encode_prefix(definition, params, self.batch)
        return Reader(definition, params, self.victim.lay_out_cache(prefix))

    @property
    def sampler(self) -> Victim:
        """The language model that proposes tokens: the companion, or else the victim."""
        return self.companion or self.victim

    @property
    def prefix(self) -> Cache:
        """The victim's cache of what precedes the slots."""
        return self.inputs.victim.prefix

    @property
    def surroundings(self) -> list[SlotText]:
        """The slots' surroundings, row by row."""
        return [prompt.surrounding for prompt in self.prompts]

    @property
    def size(self) -> int:
        """``B``, rows of all processes."""
        return self.rows.size

    def put(self, tree: Any) -> Any:
        """Places arrays of own rows on the mesh, their first axis split over examples."""
        return self.rows.put(tree)

    def fetch(self, tree: Any) -> Any:
        """Own rows of device arrays, as numpy."""
        return self.rows.fetch(tree)

    def full_mask(self, shape: tuple[int, ...]) -> Bool[Array, "B C W"]:
        """A slot mask of all rows with no gaps."""
        return self.victim.put_examples(np.ones(shape, bool))

    def survivors(
        self, candidates: Int[np.ndarray, "B C A"], current: Int[np.ndarray, "B *C A"]
    ) -> Bool[np.ndarray, "B C"]:
        """Which candidates re-tokenise to themselves inside their prompts."""
        return retokenize.survivors(self.victim.tokenizer, self.surroundings, candidates, current)

    @property
    def lengths(self) -> Int[np.ndarray, " B"]:
        """Tokens of each prompt without its slot."""
        return np.array([prompt.length for prompt in self.prompts], np.int64)

    def counted_tokens(
        self, slots: Bool[np.ndarray, "B C W"], is_scored: Bool[np.ndarray, "B C"]
    ) -> Int[np.ndarray, "B C"]:
        """What the texts of slots with these masks count in FLOPs; see ``count_padding``."""
        tokens = is_scored * (self.lengths[:, None] + slots.sum(-1))
        return is_scored * tokens.max(1, keepdims=True) if self._count_padding else tokens


def abstract_inputs(
    definition: Definition, shape: Shape, rows: int, companion: Definition | None = None
) -> Inputs:
    """The shapes of what programs take, for a batch that nobody has; nothing is allocated.

    Args:
        definition: of the victim.
        shape: the bucket.
        rows: ``B``, examples of the batch.
        companion: of the companion.
    """
    before, after, goal = shape

    def ids(width: int) -> Any:
        return jax.ShapeDtypeStruct((rows, width), jnp.int32)

    def mask(width: int) -> Any:
        return jax.ShapeDtypeStruct((rows, width), jnp.bool_)

    number: Any = jax.ShapeDtypeStruct((rows,), jnp.int32)
    example_id: Any = jax.ShapeDtypeStruct((rows,), jnp.uint32)
    batch = PromptBatch(
        example_id,
        *(ids(before), mask(before), ids(after), mask(after)),
        TextGoal(ids(goal), mask(goal)) if goal else ClassGoal(number, number),
    )

    def read(one: Definition) -> Reader:
        params = transformer.abstract_params(one)
        return Reader(
            one, params, jax.eval_shape(functools.partial(encode_prefix, one), params, batch)
        )

    vocab = definition.config.vocab
    return Inputs(
        read(definition),
        None if companion is None else read(companion),
        batch,
        jax.ShapeDtypeStruct((vocab,), jnp.bool_),
        vocab,
        jax.ShapeDtypeStruct((), jnp.uint32),
    )


def in_bfloat16(definition: Definition) -> Definition:
    """The same model with weights and activations in bfloat16; sums stay float32."""
    numerics = dataclasses.replace(
        definition.numerics, param_dtype="bfloat16", compute_dtype="bfloat16"
    )
    return dataclasses.replace(definition, numerics=numerics)


def to_bfloat16(leaf: Array) -> Array:
    """An array of floating-point numbers in bfloat16, others as they are."""
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(jnp.bfloat16) if is_float else leaf


def prefix_program(reader: Reader, batch: PromptBatch) -> Program:
    """What encodes the prefixes of a batch."""
    function = functools.partial(encode_prefix, reader.definition)
    return Program(function, (reader.params, batch))


def one_iteration(
    shown: Any,
    *,
    num_valid: Int[np.ndarray, " B"],
    tokens: Int[np.ndarray, " B"],
    calls: Mapping[str, Int[np.ndarray, "*B"]],
    mask: Bool[np.ndarray, "B W"] | None = None,
    num_retokenised: Int[np.ndarray, " B"] | None = None,
    companion_tokens: Int[np.ndarray, " B"] | None = None,
) -> Seen:
    """What one iteration showed, from its rows.

    Args:
        shown: a tuple with ``slots``, ``loss``, ``success`` and ``answer``, on the host.
        calls: runs of each program, for all rows or for each.
    """
    none = np.zeros(len(tokens), np.int64)
    rows: list[Any] = [
        shown.slots,
        np.ones(shown.slots.shape, bool) if mask is None else mask,
        *(shown.loss, shown.success, shown.answer, num_valid),
        none if num_retokenised is None else num_retokenised,
        tokens,
        none if companion_tokens is None else companion_tokens,
    ]
    runs = {name: np.broadcast_to(count, none.shape)[None] for name, count in calls.items()}
    return Seen._make([*(row[None] for row in rows), runs])


def _goal(prompts: Sequence[Prompt], width: int, pad: int) -> Goal:
    """Goals on the host: texts if there is room for them, else classes."""
    if width:
        texts: Any = pad_rows([prompt.goal_ids for prompt in prompts], width, pad)
        return TextGoal(*texts)
    pairs = [(prompt.example.label, prompt.example.target_label) for prompt in prompts]
    classes: Any = np.array(pairs, np.int32).T
    return ClassGoal(*classes)
