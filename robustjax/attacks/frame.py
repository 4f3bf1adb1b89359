"""What every attack stands on: one batch of prepared prompts and what may be asked of it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from robustjax.attacks import retokenize
from robustjax.attacks.objective import ClassGoal, Goal, PromptBatch, TextGoal, encode_prefix
from robustjax.attacks.retokenize import SlotText
from robustjax.data.batching import pad_rows
from robustjax.data.prompts import Example
from robustjax.errors import UserError
from robustjax.models.transformer import Cache
from robustjax.models.victim import Victim


class Program(NamedTuple):
    """A program that a search runs on a batch.

    Attributes:
        function: jitted, static arguments bound.
        arguments: its array arguments, or their shapes.
        runs: how often it runs.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    runs: int


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
    def shape(self) -> tuple[int, int, int]:
        """The bucket."""
        return self.before_width, self.after_width, self.goal_width


class Outcome(NamedTuple):
    """What a search found for one batch, on the host; ``I`` iterations, ``B`` rows.

    Attributes:
        slots: slot ids after each iteration, ``[I][B]`` rows of ids (masked tokens left out).
        loss: ``[I, B]`` attack loss of these slots.
        success: ``[I, B]`` whether the goal is reached.
        num_valid: ``[I, B]`` candidates that were scored.
        answer: ``[B, N]`` of the final slots; see ``objective.Scores``.
        num_retokenised: ``[B]`` draws that did not fit their slot and were redrawn.
        failures: reasons of the rows that could not be attacked after all; their other entries mean
            nothing.
        flops_tokens: ``[B]`` token passes that the search stands for by the convention of
            Howe et al. 2024 (arXiv 2407.18213): a forward pass of a token counts 1, a backward pass
            2, with no credit for caching; times ``2 N`` it gives FLOPs.
    """

    slots: list[list[list[int]]]
    loss: Float[np.ndarray, "I B"]
    success: Bool[np.ndarray, "I B"]
    num_valid: Int[np.ndarray, "I B"]
    answer: Float[np.ndarray, "B N"]
    num_retokenised: Int[np.ndarray, " B"]
    flops_tokens: Int[np.ndarray, " B"]
    failures: dict[int, str]


class BatchRun:
    """One batch of prompts in one bucket, on the device, with its prefix encoded once."""

    def __init__(self, victim: Victim, planned: PlannedBatch, batch_size: int, seed: int):
        """Fills the batch up, pads the prompts, and encodes what precedes the slots."""
        self.victim = victim
        missing = batch_size - len(planned.prompts)
        self.prompts = planned.prompts + (planned.prompts[-1],) * missing
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
        self.prefix: Cache = encode_prefix(victim.definition, victim.params, self.batch)
        self.seed = jnp.uint32(seed)
        forbidden = np.ones(victim.definition.config.vocab, bool)
        forbidden[victim.tokenizer.allowed_attack_ids] = False
        self.num_allowed = int((~forbidden).sum())
        self.forbidden: Bool[Array, " V"] = victim.put_replicated(forbidden)

    @property
    def surroundings(self) -> list[SlotText]:
        """The slots' surroundings, row by row."""
        return [prompt.surrounding for prompt in self.prompts]

    def put(self, tree: Any) -> Any:
        """Places arrays on the mesh, their first axis split over examples."""
        return self.victim.put_examples(tree)

    def full_mask(self, shape: tuple[int, ...]) -> Bool[Array, "B C W"]:
        """A slot mask with no gaps."""
        return self.put(np.ones(shape, bool))

    def survivors(
        self, candidates: Int[np.ndarray, "B C A"], current: Int[np.ndarray, "B A"]
    ) -> Bool[np.ndarray, "B C"]:
        """Which candidates re-tokenise to themselves inside their prompts."""
        return retokenize.survivors(self.victim.tokenizer, self.surroundings, candidates, current)

    @property
    def lengths(self) -> Int[np.ndarray, " B"]:
        """Tokens of each prompt without its slot."""
        return np.array([prompt.length for prompt in self.prompts], np.int64)


def _goal(prompts: Sequence[Prompt], width: int, pad: int) -> Goal:
    """Goals on the host: texts if there is room for them, else classes."""
    if width:
        texts: Any = pad_rows([prompt.goal_ids for prompt in prompts], width, pad)
        return TextGoal(*texts)
    pairs = [(prompt.example.label, prompt.example.target_label) for prompt in prompts]
    classes: Any = np.array(pairs, np.int32).T
    return ClassGoal(*classes)


def fetch(tree: Any) -> Any:
    """Device arrays to numpy."""
    return jax.tree.map(np.asarray, tree)
