"""Attacking examples and writing down what came of it, one record an example.

The search works on token arrays; here its outcomes become records: text, success and loss of every
iteration, compute, and why an example could not be attacked. Records are appended batch by batch,
so an interrupted evaluation goes on where it stopped and ends with the same file. Of several
processes each searches its own rows of a batch; what they found is gathered, and the primary one
writes it.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.attacks import search
from robustjax.attacks.frame import BatchRun, Outcome, Prompt, Seen, Shape
from robustjax.attacks.saved_search import SavedSearch
from robustjax.attacks.search import Attack, PlannedBatch, SearchConfig
from robustjax.attacks.verdict import ANY_OTHER
from robustjax.data.prompts import ChunkKind, Example
from robustjax.errors import UserError
from robustjax.evaluation import flops, records, same_search
from robustjax.evaluation.answers import Answer, clean_answers
from robustjax.evaluation.records import AttackRecord, IterationRecord
from robustjax.models.victim import Victim
from robustjax.runtime import distributed, interrupts
from robustjax.runtime.progress import Progress
from robustjax.runtime.rows import anywhere


@dataclasses.dataclass
class Timing:
    """Seconds of an evaluation; kept apart from results, which must not differ between runs.

    Attributes:
        seconds: all of it.
        seconds_compile: first iteration of each program shape, an upper bound of compilation.
        example_iterations: example-iterations run.
        seconds_search: seconds they took, first iterations of a shape left out.
    """

    seconds: float = 0.0
    seconds_compile: float = 0.0
    example_iterations: int = 0
    seconds_search: float = 0.0

    def to_json(self) -> dict[str, float | None]:
        """The figures of ``timing.json``."""
        per_example = (
            self.seconds_search / self.example_iterations if self.example_iterations else None
        )
        return {
            "seconds": self.seconds,
            "seconds_compile": self.seconds_compile,
            "seconds_per_iteration_and_example": per_example,
        }


def accuracy(
    victim: Victim, examples: Sequence[Example], logits: np.ndarray | None = None
) -> float:
    """Share of examples whose clean text is answered correctly."""
    if logits is None:
        logits = victim.logits([example.text for example in examples])
    labels = np.array([example.label for example in examples])
    return float((logits.argmax(-1) == labels).mean())


def attack_examples(
    victim: Victim,
    examples: Sequence[Example],
    chunk_kinds: tuple[ChunkKind, ...],
    attack: Attack,
    *,
    seed: int = 0,
    config: SearchConfig = search.DEFAULT_CONFIG,
    only_correct: bool = True,
    max_attacked: int | None = None,
    path: str | os.PathLike[str] | None = None,
    label: str = "attack",
    companion: Victim | None = None,
    save_seconds: float = 5.0,
    answers: dict[int, Answer] | None = None,
) -> tuple[list[AttackRecord], Timing]:
    """Attacks examples and returns one record for each.

    Args:
        victim: the model.
        examples: what to attack; ids must differ. One that cannot be attacked (too long, no clean
            slot) gets a record that says why.
        chunk_kinds: the task's chunk kinds.
        attack: the attack's settings.
        seed: keys all randomness, together with the example's id.
        config: how the search is cut into programs.
        only_correct: attack only examples that the victim answers correctly (evaluation); otherwise
            all of them (adversarial training).
        max_attacked: stop taking examples once this many are attacked; the rest leave no record.
        path: ``attack_records.jsonl`` to append to. What it holds already of the same search (see
            ``same_search``) is not done again; of the batch that an interruption left, no iteration
            that stands in ``attack_state.npz`` beside it.
        label: name on the progress line.
        companion: a smaller model of the victim's family, for attacks that ask one; others do not.
        save_seconds: how often that state is saved, at most.
        answers: what the victim says to the clean texts, by example id, if that is known already.

    Returns:
        Records (those that need no search first, then bucket by bucket) and the time spent.

    Raises:
        UserError: repeated ids; a file of other records at ``path``; a companion that is missing or
            does not fit.
        PreemptedError: the process was asked to end; what it did is saved at ``path``.
    """
    search.check_goal(attack, victim.definition.head)
    if not attack.needs_companion:
        companion = None
    search.check_companion(attack, victim, companion)
    _check_devices(victim, companion)
    timing = Timing()
    started = time.perf_counter()
    _check_ids(examples)
    if attack.untargeted:
        examples = [dataclasses.replace(one, target_label=ANY_OTHER) for one in examples]
    if path is not None:  # before anything is asked: the records there may be of another search
        key = same_search.fingerprint(
            *(victim, companion, examples, chunk_kinds, attack, seed, config),
            *(only_correct, max_attacked, answers),
        )
        distributed.from_primary(
            functools.partial(same_search.claim, Path(path), key), "whose records there are"
        )
    clean = clean_answers(victim, examples, config) if answers is None else answers
    attacked, spared = _chosen(examples, clean, only_correct, max_attacked)
    prompts, failures = search.prepare(victim, attacked, chunk_kinds, attack, seed, companion)
    left_out = {one.example_id for one in spared} | failures.keys()
    idle = [
        _blank_record(one, clean[one.example_id], failures.get(one.example_id), attack, seed)
        for one in examples
        if one.example_id in left_out
    ]
    batches = search.plan(prompts, config)
    done, whole = distributed.from_primary(
        lambda: _resume(path, idle, batches, attack),
        "the records so far",
        plain=lambda found: (records.lines_of(found[0]), found[1]),
        back=lambda sent: (records.of_lines(sent[0]), sent[1]),
    )

    saved = SavedSearch(path and Path(path).with_name("attack_state.npz"), save_seconds)
    total = len(prompts) * attack.num_iterations
    before = sum(len(record.iterations) for record in done)
    with (
        interrupts.finishing() if saved.is_on else contextlib.nullcontext(),
        Progress(total, label, unit="example-iterations", done=before) as progress,
    ):
        ticker = _Ticker(timing, progress)
        cost = ExecutedCost(attack)
        for batch, run, outcome in search.run_batches(
            *(victim, batches[whole:], attack, seed, config, ticker),
            companion=companion,
            saved=saved,
        ):
            new = _records(batch, run, outcome, clean, attack, seed, cost(batch, run, outcome.seen))
            if path is not None and distributed.is_primary():
                records.append_records(path, new)
            done.extend(new)
            del run  # its arrays make room for the next batch's
            ticker.restart_clock()
            if saved.is_on and anywhere(interrupts.is_preempted())[0]:
                interrupts.stop()
    saved.clear()
    timing.seconds = time.perf_counter() - started
    return done, timing


def _chosen(
    examples: Sequence[Example],
    clean: dict[int, Answer],
    only_correct: bool,
    max_attacked: int | None,
) -> tuple[list[Example], list[Example]]:
    """What is attacked, and what comes before the last of it but is not."""
    attacked: list[Example] = []
    spared: list[Example] = []
    for example in examples:
        answer = clean[example.example_id]
        wanted = answer.failure is None and (answer.correct or not only_correct)
        (attacked if wanted else spared).append(example)
        if len(attacked) == max_attacked:
            break
    return attacked, spared


def _check_ids(examples: Sequence[Example]) -> None:
    ids = [example.example_id for example in examples]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"two examples have the example_id {twice}; give each its own")


def _check_devices(victim: Victim, companion: Victim | None) -> None:
    if companion is not None and companion.mesh != victim.mesh:
        raise UserError(
            f"companion {companion.name} lies on {companion.mesh.size} devices, laid out as "
            f"{dict(companion.mesh.shape)}, victim {victim.name} on {victim.mesh.size}, as "
            f"{dict(victim.mesh.shape)}; load both with the same mesh"
        )


class _Ticker:
    """Feeds the progress line and the clock; a shape's first iterations hold its compilation."""

    def __init__(self, timing: Timing, progress: Progress):
        self._timing, self._progress = timing, progress
        self._last = time.perf_counter()
        self._seen: set[tuple[int, int, int]] = set()

    def restart_clock(self) -> None:
        """Leaves out what has passed since the last tick: counting FLOPs and writing records."""
        self._last = time.perf_counter()

    def __call__(self, batch: PlannedBatch, iterations: int) -> None:
        now = time.perf_counter()
        count = iterations * len(batch.prompts)
        if batch.shape in self._seen:
            self._timing.seconds_search += now - self._last
            self._timing.example_iterations += count
        else:
            self._timing.seconds_compile += now - self._last
            self._seen.add(batch.shape)
        self._last = now
        self._progress.advance(count)


class ExecutedCost:
    """Executed FLOPs of a batch's rows; each program is counted once a bucket."""

    def __init__(self, attack: Attack):
        self._attack = attack
        self._known: dict[Shape, dict[str, int]] = {}

    def __call__(self, batch: PlannedBatch, run: BatchRun, seen: Seen) -> list[int]:
        """FLOPs of the search for each row: its share of the programs that it is charged with."""
        known = self._known.setdefault(batch.shape, {})
        new = {name for name, calls in seen.calls.items() if calls.any()} - known.keys()
        if new:
            programs = search.module_of(self._attack).programs(self._attack, run.inputs)
            for name in sorted(new):
                function, arguments = programs[name]
                known[name] = flops.executed_flops(function, *arguments)
        total = sum(seen.calls[name].sum(0) * cost for name, cost in known.items())
        return [int(one) // run.size for one in total]


def _resume(
    path: str | os.PathLike[str] | None,
    idle: list[AttackRecord],
    batches: list[PlannedBatch],
    attack: Attack,
) -> tuple[list[AttackRecord], int]:
    """Keeps the batches that are recorded whole, and returns how many these are."""
    if path is None:
        return list(idle), 0
    known = {record.example_id: record for record in records.read_complete_records(path)}
    for record in known.values():
        if len(record.iterations) not in (0, attack.num_iterations):
            raise UserError(
                f"{os.fspath(path)} is damaged: example_id {record.example_id} has "
                f"{len(record.iterations)} of {attack.num_iterations} iterations; delete it"
            )
    done, whole = list(idle), 0
    for batch in batches:
        ids = [prompt.example.example_id for prompt in batch.prompts]
        if not all(i in known for i in ids):
            break
        done.extend(known[i] for i in ids)
        whole += 1
    records.write_records(path, done)
    return done, whole


def _blank_record(
    example: Example, clean: Answer, failure: str | None, attack: Attack, seed: int
) -> AttackRecord:
    """The record of an example that was not attacked, or could not even be asked."""
    return AttackRecord(
        example_id=example.example_id,
        label=example.label,
        target_label=example.target_label,
        correct_before=clean.correct,
        attacked_text=None,
        success=False,
        logits=None,
        clean_logits=clean.logits,
        iterations=[],
        num_retokenised=0,
        position=attack.position,
        seed=seed,
        flops_algorithmic=0,
        flops_executed=0,
        failure=failure or clean.failure,
        target_logprobs=None,
        clean_target_logprobs=clean.target_logprobs,
        attack=attack.name,
        variant=attack.variant,
        clean_flops_algorithmic=clean.flops.algorithmic,
        clean_flops_executed=clean.flops.executed,
    )


def _records(
    batch: PlannedBatch,
    run: BatchRun,
    outcome: Outcome,
    clean: dict[int, Answer],
    attack: Attack,
    seed: int,
    executed: list[int],
) -> list[AttackRecord]:
    seen, count = outcome.seen, len(batch.prompts)
    decode = run.victim.tokenizer.decode
    texts = [
        decode([seen.ids(i, row) for row in range(count)]) for i in range(len(seen.loss))
    ]  # [I][B]

    def record(row: int, prompt: Prompt) -> AttackRecord:
        example = prompt.example
        answer = clean[example.example_id]
        if row in outcome.failures:
            return _blank_record(example, answer, outcome.failures[row], attack, seed)
        iterations = [
            IterationRecord(
                loss=float(seen.loss[i, row]),
                success=bool(seen.success[i, row]),
                slot_text=texts[i][row],
                num_valid=int(seen.num_valid[i, row]),
                logits=None if prompt.goal_ids else seen.answer[i, row].tolist(),
            )
            for i in range(len(texts))
        ]
        surrounding = prompt.surrounding
        answered = seen.answer[-1, row].tolist()
        return AttackRecord(
            example_id=example.example_id,
            label=example.label,
            target_label=example.target_label,
            correct_before=answer.correct,
            attacked_text=surrounding.before + iterations[-1].slot_text + surrounding.after,
            success=iterations[-1].success,
            logits=None if prompt.goal_ids else answered,
            clean_logits=answer.logits,
            iterations=iterations,
            num_retokenised=int(seen.num_retokenised[:, row].sum()),
            position=attack.position,
            seed=seed,
            flops_algorithmic=sum(
                flops.forward_flops(model.num_params, int(tokens[:, row].sum()))
                for model, tokens in (
                    (run.victim, seen.tokens),
                    (run.companion or run.victim, seen.companion_tokens),
                )
            ),
            flops_executed=executed[row],
            failure=None,
            target_logprobs=answered[: len(prompt.goal_ids)] if prompt.goal_ids else None,
            clean_target_logprobs=answer.target_logprobs,
            attack=attack.name,
            variant=attack.variant,
            clean_flops_algorithmic=answer.flops.algorithmic,
            clean_flops_executed=answer.flops.executed,
        )

    return [record(row, prompt) for row, prompt in enumerate(batch.prompts)]


def describe(attack: Attack) -> dict[str, Any]:
    """The attack's name and settings, for summaries and hashes."""
    return {"name": attack.name} | dataclasses.asdict(attack)
