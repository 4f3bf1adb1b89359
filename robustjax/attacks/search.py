"""The one driver of every attack: prompts to buckets, buckets to batches, batches to outcomes."""

import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robustjax.attacks import beam_search, beast, gcg, random_token
from robustjax.attacks.frame import (
    BatchRun,
    Outcome,
    Pending,
    PlannedBatch,
    Prompt,
    Seen,
    Shape,
    check_positive,
    joined,
)
from robustjax.attacks.retokenize import SlotText, why_no_start
from robustjax.attacks.saved_search import NEVER_SAVED, SavedSearch, fingerprint
from robustjax.data.batching import bucket_for, check_edges
from robustjax.data.prompts import ChunkKind, Example, split_at_slot
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.models.transformer import Definition, Head
from robustjax.models.victim import Victim
from robustjax.runtime import distributed, interrupts
from robustjax.runtime.compilation import make_room_for_programs
from robustjax.runtime.rows import Heard, anywhere

Attack = gcg.GCG | random_token.RandomToken | beam_search.BeamSearch | beast.BEAST

_MODULES: dict[type, types.ModuleType] = {
    gcg.GCG: gcg,
    random_token.RandomToken: random_token,
    beam_search.BeamSearch: beam_search,
    beast.BEAST: beast,
}

ATTACKS: dict[str, type] = {settings.name: settings for settings in _MODULES}  # type: ignore
"""Settings class of every attack by name."""


def module_of(attack: Attack) -> types.ModuleType:
    """The file of an attack.

    It has the functions ``slot_width`` (most tokens a slot can have), ``start`` (the slot of one
    example to start from), ``init`` (the state before the first iteration), ``step`` (an iteration,
    or a few: ``iterations_of_step``), ``kept`` and ``revive`` (what of a state is saved, and the
    state that this makes), ``failures`` and ``programs`` (what a search runs, by name).
    """
    return _MODULES[type(attack)]


EDGES = (128, 384, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Widths that the tokens before and after a slot are padded to.

Few, since each takes programs of its own. A prefix is encoded once and only attended to, so its
padding costs little."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How a search is cut into programs, which changes results by rounding only, and counted.

    Attributes:
        batch_size: examples attacked at once; a short last batch is filled up.
        edges: widths that the tokens before and after the slot are padded to.
        count_padding: counts in algorithmic FLOPs every text as long as the longest of its example
            that is scored together with it (Howe et al. 2024). Texts of an example differ in length
            where they are tokenised anew, in random token search and BEAST.
    """

    batch_size: int = 16
    edges: tuple[int, ...] = EDGES
    count_padding: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        check_edges(self.edges)


DEFAULT_CONFIG = SearchConfig()


@runtime_checkable
class Model(Protocol):
    """What is known of a model before its weights are loaded."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def definition(self) -> Definition:
        """Its function."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What it reads with."""


def prepare(
    victim: Victim,
    examples: Sequence[Example],
    chunk_kinds: tuple[ChunkKind, ...],
    attack: Attack,
    seed: int,
    companion: Model | None = None,
) -> tuple[list[Prompt], dict[int, str]]:
    """Finds a slot to start from in every example.

    Args:
        companion: the model that the attack asks as well; it reads the prompts too.

    Returns:
        The prompts that can be attacked, and for the other examples (by id) the reason why not.
    """
    prompts, failures = [], {}
    module = module_of(attack)
    for example in examples:
        prompt = prompt_of(victim, example, chunk_kinds, attack, companion)
        if isinstance(prompt, str):
            failures[example.example_id] = prompt
            continue
        around = prompt.surrounding
        slot = module.start(attack, victim.tokenizer, around, seed, example.example_id)
        if slot is None:
            failures[example.example_id] = why_no_start(
                victim.tokenizer, around, attack.num_tokens, attack.position
            )
            continue
        prompts.append(dataclasses.replace(prompt, slot=tuple(slot)))
    return prompts, failures


def check_goal(attack: Attack, head: Head) -> None:
    """Raises UserError for an untargeted attack on a language model."""
    if attack.untargeted and head == "lm":
        raise UserError(
            "untargeted=True: a language model is attacked toward a text; set it to False"
        )


def companion_head(attack: Attack, head: Head) -> Head:
    """What an attack's companion has to put out, given what the victim does."""
    return "lm" if isinstance(attack, beast.BEAST) else head


def why_companion(attack: Attack, head: Head) -> str:
    """Why an attack cannot do without a second model; empty if it can.

    Args:
        attack: its settings.
        head: what the victim puts out.
    """
    if not attack.needs_companion:
        return ""
    if isinstance(attack, beast.BEAST):
        # A victim that is a language model is asked itself.
        return "" if head == "lm" else f"{attack.name} samples tokens from a language model"
    return f"{attack.name} with probe sampling asks a smaller model first"


def check_companion(attack: Attack, victim: Model, companion: Model | None) -> None:
    """Checks that an attack has the second model that it asks, before anything is computed.

    Raises:
        UserError: it has none, or one that reads other tokens or answers another question.
    """
    head = victim.definition.head
    if companion is None:
        if reason := why_companion(attack, head):
            raise UserError(f"no companion: {reason}; give one of the victim's family")
        return
    there, wanted = companion.definition, companion_head(attack, head)
    if there.head != wanted or (wanted == "classifier" and there.outputs != _outputs(victim)):
        kind = (
            "a language model" if wanted == "lm" else f"a classifier of {_outputs(victim)} classes"
        )
        raise UserError(f"companion {companion.name}: {attack.name} needs {kind}; give one")
    if companion.tokenizer.fingerprint != victim.tokenizer.fingerprint:
        raise UserError(
            f"companion {companion.name} has another tokenizer than {victim.name}; give a model of "
            "the victim's family"
        )


def _outputs(victim: Model) -> int:
    return victim.definition.outputs


def with_goal(
    victim: Model,
    example: Example,
    surrounding: SlotText,
    slot_width: int = 0,
    companion: Model | None = None,
) -> Prompt | str:
    """A prompt without a slot yet, or the reason why it cannot be asked.

    A language model's goal is the example's ``proxy_gen_target``.
    """
    goal_ids: list[int] = []
    if victim.definition.head == "lm":
        (goal_ids,) = victim.tokenizer.encode_inside([example.proxy_gen_target])
        if not goal_ids:
            return "the text that the model should go on with is empty"
    prompt = Prompt(example, surrounding, (), tuple(goal_ids))
    length = prompt.length + slot_width
    too_long = f"prompt and slot take {length} tokens, more than the context of"
    if length > victim.definition.config.context:
        return f"{too_long} {victim.definition.config.context}"
    if companion is not None and length > companion.definition.config.context:
        return f"{too_long} the companion, {companion.definition.config.context}"
    return prompt


def prompt_of(
    victim: Model,
    example: Example,
    chunk_kinds: tuple[ChunkKind, ...],
    attack: Attack,
    companion: Model | None = None,
) -> Prompt | str:
    """An example's prompt for an attack, without a slot yet, or why it cannot be attacked."""
    before, after = split_at_slot(example, chunk_kinds, attack.position)
    surrounding = SlotText.surrounding(victim.tokenizer, before, after)
    width = module_of(attack).slot_width(attack)
    return with_goal(victim, example, surrounding, width, companion)


def plan(prompts: Sequence[Prompt], config: SearchConfig) -> list[PlannedBatch]:
    """Groups prompts into batches of one bucket each, smallest bucket first.

    Raises:
        UserError: a prompt that no bucket is wide enough for.
    """
    for prompt in prompts:
        around = prompt.surrounding
        longest = max(map(len, (around.before_ids, around.after_ids, prompt.goal_ids)))
        if longest > config.edges[-1]:
            raise UserError(
                f"edges={config.edges}: example {prompt.example.example_id} has a part of "
                f"{longest} tokens; add a bucket as wide"
            )
    buckets: dict[Shape, list[Prompt]] = {}
    for prompt in prompts:
        buckets.setdefault(bucket_of(prompt, config), []).append(prompt)
    size = config.batch_size
    return [
        PlannedBatch(tuple(members[start : start + size]), *widths)
        for widths, members in sorted(buckets.items(), key=lambda item: item[0])
        for start in range(0, len(members), size)
    ]


def bucket_of(prompt: Prompt, config: SearchConfig) -> Shape:
    """The bucket of a prompt."""
    around = prompt.surrounding
    return bucket_shape(len(around.before_ids), len(around.after_ids), len(prompt.goal_ids), config)


def bucket_shape(before: int, after: int, goal: int, config: SearchConfig) -> Shape:
    """The bucket of a prompt with so many tokens before and after its slot, and of its goal."""
    return (
        bucket_for(max(before, 1), config.edges),
        _tail_width(after, config.edges),
        _tail_width(goal, config.edges) if goal else 0,
    )


def _tail_width(length: int, edges: tuple[int, ...]) -> int:
    """Room for a part of the tail: exact for short texts (an answer prompt), else a bucket.

    What follows the slot is recomputed for every candidate, so padding it is expensive.
    """
    return (
        max(length, 1) if length <= 8 else bucket_for(length, tuple(sorted({12, 16, 24, *edges})))
    )


def run_batches(
    victim: Victim,
    batches: Sequence[PlannedBatch],
    attack: Attack,
    seed: int,
    config: SearchConfig,
    tick: Callable[[PlannedBatch, int], None] = lambda batch, iterations: None,
    *,
    companion: Victim | None = None,
    saved: SavedSearch = NEVER_SAVED,
) -> Iterator[tuple[PlannedBatch, BatchRun, Outcome]]:
    """Attacks batch after batch.

    Args:
        tick: called with the batch and the number of iterations that were just finished.
        companion: a smaller model of the victim's family, for attacks that ask one.
        saved: where an interrupted batch is gone on with from.

    Yields:
        Each batch with its outcome; rows beyond the batch's prompts are filling and to be ignored.
    """
    for number, batch in enumerate(batches, start=1):
        distributed.barrier(f"attack batch {number} of {len(batches)}")
        make_room_for_programs()  # a batch of a new shape compiles several
        run = BatchRun(
            *(victim, batch, config.batch_size, seed, companion), count_padding=config.count_padding
        )
        yield batch, run, run_batch(attack, run, functools.partial(tick, batch), saved)


def run_batch(
    attack: Attack,
    run: BatchRun,
    tick: Callable[[int], None] = lambda iterations: None,
    saved: SavedSearch = NEVER_SAVED,
) -> Outcome:
    """Runs an attack on one batch, from where it was left.

    What an iteration showed is fetched when the next one is under way, so that the device does not
    wait for the host. A search that is saved ends with PreemptedError when a process is asked to.

    Returns:
        What was found for all rows, in every process.
    """
    module = module_of(attack)
    key = fingerprint(attack, run) if saved.is_on else ""
    state, done = module.init(attack, run), 0
    history: list[Seen] = []
    if found := saved.load(key, module.kept(state)):
        state = module.revive(attack, run, run.rows.own(found.state))
        history, done = [run.rows.own(found.seen, axis=1)], len(found.seen.loss)
        tick(done)
    pending: list[Pending] = []
    heard = Heard()

    def settle() -> None:
        history.extend(one.seen(run) for one in pending)
        pending.clear()

    def is_over() -> bool:
        if done == attack.num_iterations or not (attack.stop_at_success and done):
            return done == attack.num_iterations
        settle()
        return not anywhere(not all_stopped(history, module.failures(attack, run, state)))[0]

    while not is_over():
        state, new = module.step(attack, run, state, done + 1)
        settle()
        pending.append(new)
        count = module.iterations_of_step(attack, done + 1)
        done += count
        is_due = is_preempted = False
        if saved.is_on:
            is_due, is_preempted = heard(saved.is_due(), interrupts.is_preempted())
        if is_due or is_preempted:
            settle()
            history = [joined(history)]
            whole = run.rows.gather(module.kept(state)), run.rows.gather(history[0], axis=1)
            saved.save(key, *whole)
        tick(count)
        if is_preempted:
            interrupts.stop()
    settle()
    seen = joined(history)
    if attack.stop_at_success:
        seen = stopped_at_success(seen, attack.num_iterations)
    return Outcome(run.rows.gather(seen, axis=1), _everyones(run, module, attack, state))


def _everyones(
    run: BatchRun, module: types.ModuleType, attack: Attack, state: Any
) -> dict[int, str]:
    """Reasons of all rows that could not be attacked, by their numbers in the batch."""
    mine = {
        int(run.rows.mine[row]): reason
        for row, reason in module.failures(attack, run, state).items()
    }
    found = distributed.everyones(mine, "the failures of a batch") if run.rows.are_split else [mine]
    return {row: reason for part in found for row, reason in part.items()}


def all_stopped(history: Sequence[Seen], failures: Collection[int] = ()) -> bool:
    """Whether every row was successful once, or cannot be attacked."""
    success = np.concatenate([seen.success for seen in history])
    stopped = np.array(success.any(0))
    stopped[list(failures)] = True
    return bool(stopped.all())


def stopped_at_success(seen: Seen, num_iterations: int) -> Seen:
    """What would have been seen had each row been left alone after its first success.

    From then on its slot is repeated and nothing is charged to it. Rows do not depend on one
    another, so a batch may go on for the sake of some without harm to the others.
    """
    ran, rows = seen.success.shape
    first = np.where(seen.success.any(0), seen.success.argmax(0), ran - 1)
    number = np.arange(num_iterations)[:, None]
    shown = np.minimum(number, first), np.arange(rows)[None]
    goes_on = number <= first

    def repeated(x: np.ndarray) -> np.ndarray:
        return x[shown]

    def charged(x: np.ndarray) -> np.ndarray:
        return np.where(goes_on, x[shown], 0)

    return Seen(
        slots=repeated(seen.slots),
        mask=repeated(seen.mask),
        loss=repeated(seen.loss),
        success=repeated(seen.success),
        answer=repeated(seen.answer),
        num_valid=charged(seen.num_valid),
        num_retokenised=charged(seen.num_retokenised),
        tokens=charged(seen.tokens),
        companion_tokens=charged(seen.companion_tokens),
        calls={name: charged(x) for name, x in seen.calls.items()},
    )
