"""Attacking a model you have, from a notebook: one call, plain examples in, records out."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from robustjax.attacks import search
from robustjax.attacks.search import Attack, SearchConfig
from robustjax.data.prompts import ANSWER_PROMPT, ChunkKind, Example, require_label
from robustjax.errors import UserError
from robustjax.evaluation import records
from robustjax.evaluation.evaluate import attack_examples
from robustjax.evaluation.records import AttackRecord
from robustjax.models.victim import Victim


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack did to a victim.

    Attributes:
        success_rate: share of the attacked examples that the victim gets wrong in the end; examples
            that it got wrong already are not attacked. NaN if none was attacked. In the summary
            its name tells what options of the attack make of it; see `records.rate_names`.
        records: one for each example, in the order given.
        summary: rates by iteration, accuracies and FLOPs; see `records.summarise`.
    """

    success_rate: float
    records: list[AttackRecord]
    summary: dict[str, Any]


def run_attack(
    victim: Victim,
    examples: Sequence[Example | Mapping[str, Any]],
    attack: Attack,
    seed: int = 0,
    *,
    instructions: str = "",
    answer_prompt: str = ANSWER_PROMPT,
    chunk_kinds: tuple[ChunkKind, ...] | None = None,
    config: SearchConfig | None = None,
    path: str | os.PathLike[str] | None = None,
    companion: Victim | None = None,
) -> AttackResult:
    """Attacks the examples that the victim answers correctly.

    Args:
        victim: the model.
        examples: mappings with `text` and integer `label` (for a language model, with `text` and
            `target`: the text that it should be made to go on with, leading space included), rows
            in the record format of `robustjax.data.prompts.ROW_FIELDS`, or `Example`s. A mapping's
            place is its `example_id`.
        attack: the attack's settings.
        seed: keys all randomness, together with the example's id.
        instructions: put before every `text`.
        answer_prompt: put after every `text`.
        chunk_kinds: what may be attacked. By default the attack is inserted into the last content
            chunk.
        config: how the search is cut into programs; by default batches of 16 examples, or of all if
            there are fewer. So calls with different numbers of examples below 16 agree within the
            tolerance, not bit for bit; `SearchConfig(batch_size=...)` makes the bits the same.
        path: a file of records to write; the same call continues it after an interruption.
        companion: another model of the victim's family, for attacks that ask one: `BEAST` a
            language model, `GCG` with `probe_size` a smaller classifier of the same classes.

    Raises:
        UserError: no examples, one that is malformed, a seed out of range, or a companion that is
            missing or does not fit.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed!r} must be an integer from 0 to 2**32 - 1")
    if not examples:
        raise UserError("examples is empty: give at least one")
    chosen = [
        _example(value, index, victim, instructions, answer_prompt)
        for index, value in enumerate(examples)
    ]
    found, _ = attack_examples(
        victim,
        chosen,
        _chunk_kinds(chosen) if chunk_kinds is None else chunk_kinds,
        attack,
        seed=seed,
        config=_batches_for(chosen) if config is None else config,
        path=path,
        companion=companion,
    )
    by_id = {record.example_id: record for record in found}
    ordered = [by_id[example.example_id] for example in chosen]
    summary = records.summarise(ordered)
    rate = summary[records.rate_names(summary["variant"]).rate]
    return AttackResult(rate, ordered, summary)


def _batches_for(examples: Sequence[Example]) -> SearchConfig:
    usual = search.DEFAULT_CONFIG
    return dataclasses.replace(usual, batch_size=min(usual.batch_size, len(examples)))


def _example(
    value: Any, index: int, victim: Victim, instructions: str, answer_prompt: str
) -> Example:
    num_classes, is_lm = victim.definition.num_classes, victim.definition.head == "lm"
    try:
        if isinstance(value, Example):
            example = value
        elif not isinstance(value, Mapping):
            raise UserError(f"is {type(value).__name__}: expected a mapping or an Example")
        elif is_lm and "text" in value and "target" in value:
            answers = ("", value["target"])
            example = _plain_example(value, index, (0, 1), answers, instructions, answer_prompt)
        elif is_lm and "proxy_gen_target" not in value:
            raise UserError("has no target: the text that the language model should go on with")
        elif "text" in value and "label" in value:
            label = require_label("label", value["label"])
            labels = (label, (label + 1) % num_classes)
            answers = (f" CLASS{labels[0]}", f" CLASS{labels[1]}")
            example = _plain_example(value, index, labels, answers, instructions, answer_prompt)
        else:
            example = Example.from_row(value, index)
        if is_lm:
            return example
        for name in ("label", "target_label"):
            if getattr(example, name) >= num_classes:
                raise UserError(
                    f"{name} {getattr(example, name)} is none of the victim's {num_classes} classes"
                )
    except UserError as error:
        raise UserError(f"examples[{index}]: {error}") from None
    return example


def _plain_example(
    value: Mapping[str, Any],
    index: int,
    labels: tuple[int, int],
    answers: tuple[Any, Any],
    instructions: str,
    answer_prompt: str,
) -> Example:
    """Of a true and a wanted label, and the texts of both answers."""
    return Example.from_row(
        {
            "instructions": instructions,
            "content": [value["text"]],
            "answer_prompt": answer_prompt,
            "clf_label": labels[0],
            "proxy_clf_label": labels[1],
            "gen_target": answers[0],
            "proxy_gen_target": answers[1],
        },
        index,
    )


def _chunk_kinds(examples: Sequence[Example]) -> tuple[ChunkKind, ...]:
    """The last content chunk may be attacked; an attack inserted into an empty one replaces it."""
    counts = [len(example.content) for example in examples]
    for index, count in enumerate(counts):
        if count != counts[0]:
            raise UserError(
                f"examples[{index}]: has {count} content chunks, examples[0] has {counts[0]}"
            )
    kinds = [ChunkKind.IMMUTABLE] * (counts[0] + 2)
    kinds[-2] = ChunkKind.PERTURBABLE
    return tuple(kinds)
