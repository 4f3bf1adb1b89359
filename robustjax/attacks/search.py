"""The one driver of every attack: prompts to buckets, buckets to batches, batches to outcomes."""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Sequence

from robustjax.attacks import gcg, random_token
from robustjax.attacks.frame import BatchRun, Outcome, PlannedBatch, Prompt, check_positive
from robustjax.attacks.retokenize import SlotText
from robustjax.data.batching import bucket_for, check_edges
from robustjax.data.prompts import ChunkKind, Example, split_at_slot
from robustjax.models.victim import BUCKET_EDGES, Victim
from robustjax.runtime.compilation import make_room_for_programs

Attack = gcg.GCG | random_token.RandomToken

_MODULES: dict[type, types.ModuleType] = {
    gcg.GCG: gcg,
    random_token.RandomToken: random_token,
}

ATTACKS: dict[str, type] = {
    gcg.GCG.name: gcg.GCG,
    random_token.RandomToken.name: random_token.RandomToken,
}
"""Settings class of every attack by name."""


def module_of(attack: Attack) -> types.ModuleType:
    """The file of an attack: ``slot_width``, ``start``, ``search`` and ``programs``."""
    return _MODULES[type(attack)]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How a search is cut into programs; changes results by rounding only.

    Attributes:
        batch_size: examples attacked at once; a short last batch is filled up.
        edges: widths that the tokens before and after the slot are padded to.
    """

    batch_size: int = 16
    edges: tuple[int, ...] = BUCKET_EDGES

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        check_edges(self.edges)


DEFAULT_CONFIG = SearchConfig()


def prepare(
    victim: Victim,
    examples: Sequence[Example],
    chunk_kinds: tuple[ChunkKind, ...],
    attack: Attack,
    seed: int,
) -> tuple[list[Prompt], dict[int, str]]:
    """Finds a slot to start from in every example.

    Returns:
        The prompts that can be attacked, and for the other examples (by id) the reason why not.
    """
    prompts, failures = [], {}
    module = module_of(attack)
    width = module.slot_width(attack)
    for example in examples:
        before, after = split_at_slot(example, chunk_kinds, attack.position)
        surrounding = SlotText.surrounding(victim.tokenizer, before, after)
        prompt = with_goal(victim, example, surrounding, width)
        if isinstance(prompt, str):
            failures[example.example_id] = prompt
            continue
        slot = module.start(attack, victim.tokenizer, surrounding, seed, example.example_id)
        if slot is None:
            failures[example.example_id] = (
                f"no slot of {attack.num_tokens} tokens re-tokenises to itself at position "
                f"{attack.position}"
            )
            continue
        prompts.append(dataclasses.replace(prompt, slot=tuple(slot)))
    return prompts, failures


def with_goal(
    victim: Victim, example: Example, surrounding: SlotText, slot_width: int = 0
) -> Prompt | str:
    """A prompt without a slot yet, or the reason why the victim cannot be asked it.

    A language model's goal is the example's ``proxy_gen_target``.
    """
    goal_ids: list[int] = []
    if victim.definition.head == "lm":
        (goal_ids,) = victim.tokenizer.encode([example.proxy_gen_target])
        if not goal_ids:
            return "the text that the model should go on with is empty"
    prompt = Prompt(example, surrounding, (), tuple(goal_ids))
    length = prompt.length + slot_width
    if length > victim.context:
        return f"prompt and slot take {length} tokens, more than the context of {victim.context}"
    return prompt


def plan(prompts: Sequence[Prompt], config: SearchConfig) -> list[PlannedBatch]:
    """Groups prompts into batches of one bucket each, smallest bucket first."""
    buckets: dict[tuple[int, int, int], list[Prompt]] = {}
    for prompt in prompts:
        widths = (
            bucket_for(max(len(prompt.surrounding.before_ids), 1), config.edges),
            _tail_width(len(prompt.surrounding.after_ids), config.edges),
            _tail_width(len(prompt.goal_ids), config.edges) if prompt.goal_ids else 0,
        )
        buckets.setdefault(widths, []).append(prompt)
    size = config.batch_size
    return [
        PlannedBatch(tuple(members[start : start + size]), *widths)
        for widths, members in sorted(buckets.items(), key=lambda item: item[0])
        for start in range(0, len(members), size)
    ]


def _tail_width(length: int, edges: tuple[int, ...]) -> int:
    """Room for a part of the tail: exact for short texts (an answer prompt), else a bucket.

    What follows the slot is recomputed for every candidate, so padding it is expensive.
    """
    return max(length, 1) if length <= 8 else bucket_for(length, (12, 16, 24, *edges))


def run_batches(
    victim: Victim,
    batches: Sequence[PlannedBatch],
    attack: Attack,
    seed: int,
    config: SearchConfig,
    tick: Callable[[PlannedBatch, int], None] = lambda batch, iterations: None,
) -> Iterator[tuple[PlannedBatch, BatchRun, Outcome]]:
    """Attacks batch after batch.

    Args:
        tick: called with the batch and the number of iterations that were just finished.

    Yields:
        Each batch with its outcome; rows beyond the batch's prompts are filling and to be ignored.
    """
    for batch in batches:
        make_room_for_programs()  # a batch of a new shape compiles several
        run = BatchRun(victim, batch, config.batch_size, seed)
        outcome = module_of(attack).search(attack, run, functools.partial(tick, batch))
        yield batch, run, outcome
