"""What a victim says to clean texts, before anybody attacks it."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax.attacks import frame, search
from robustjax.attacks.frame import BatchRun
from robustjax.attacks.objective import score
from robustjax.attacks.passes import Pass
from robustjax.attacks.retokenize import SlotText
from robustjax.attacks.search import SearchConfig
from robustjax.data.batching import bucket_for
from robustjax.data.prompts import Example
from robustjax.evaluation import flops
from robustjax.evaluation.flops import Flops
from robustjax.models import transformer
from robustjax.models.transformer import Definition
from robustjax.models.victim import BUCKET_EDGES, Victim
from robustjax.runtime.rows import fetch


class Answer(NamedTuple):
    """What the victim says to a clean text, or why it cannot be asked.

    Attributes:
        correct: whether a classifier names the right class, or a language model does not go on with
            the text that the attack wants.
        logits: of the classes; empty for a language model.
        target_logprobs: log-probabilities of that text's tokens; None for a classifier.
        failure: the reason, or None.
        flops: of asking.
    """

    correct: bool
    logits: list[float]
    target_logprobs: list[float] | None
    failure: str | None
    flops: Flops = Flops(0, 0)


def clean_answers(
    victim: Victim, examples: Sequence[Example], config: SearchConfig
) -> dict[int, Answer]:
    """The victim's answers by example id, in the order of the examples."""
    rows = victim.tokenizer.encode([example.text for example in examples])
    fits = [1 <= len(row) <= victim.context for row in rows]
    asked = [(example, row) for example, row, fit in zip(examples, rows, fits, strict=True) if fit]
    ask = ask_language_model if victim.definition.head == "lm" else _ask_classifier
    answers = ask(victim, asked, config)
    for example, row, fit in zip(examples, rows, fits, strict=True):
        if not fit:
            reason = (
                f"the text has {len(row)} tokens; between 1 and the model's context of "
                f"{victim.context} are possible"
            )
            answers[example.example_id] = Answer(False, [], None, reason)
    return {example.example_id: answers[example.example_id] for example in examples}


def _ask_classifier(
    victim: Victim, asked: Sequence[tuple[Example, Sequence[int]]], config: SearchConfig
) -> dict[int, Answer]:
    scores = victim.logits_of_ids([row for _, row in asked])
    return {
        example.example_id: Answer(
            bool(one.argmax() == example.label), one.tolist(), None, None, _cost(victim, len(row))
        )
        for (example, row), one in zip(asked, scores, strict=True)
    }


def _cost(victim: Victim, length: int) -> Flops:
    """Of a text of so many tokens that is read whole, its share of a padded batch."""
    width = bucket_for(length, BUCKET_EDGES)
    return Flops(
        flops.forward_flops(victim.num_params, length),
        _executed(victim.definition, victim.batch_size, width) // victim.batch_size,
    )


@functools.lru_cache(maxsize=256)
def _executed(definition: Definition, rows: int, width: int) -> int:
    ids: Any = jax.ShapeDtypeStruct((rows, width), np.int32)
    mask: Any = jax.ShapeDtypeStruct((rows, width), np.bool_)
    params = transformer.abstract_params(definition)
    return flops.executed_flops(functools.partial(transformer.apply, definition), params, ids, mask)


def ask_language_model(
    victim: Victim, asked: Sequence[tuple[Example, Sequence[int]]], config: SearchConfig
) -> dict[int, Answer]:
    """Whether a language model does not go on with an example's ``proxy_gen_target``.

    Scores prompts as an attack does, with a slot of no tokens before the last.

    Args:
        victim: the model.
        asked: examples, whose ids must differ, and the ids of the text that each is asked with.
        config: how the texts are cut into batches.
    """
    answers, prompts = {}, []
    for example, row in asked:
        prompt = search.with_goal(victim, example, SlotText.of_ids(row[:-1], row[-1:]))
        if isinstance(prompt, str):
            answers[example.example_id] = Answer(False, [], None, prompt)
        else:
            prompts.append(prompt)
    for batch in search.plan(prompts, config):
        run = BatchRun(victim, batch, config.batch_size, seed=0)
        empty, at_once = (run.size, 1, 0), Pass(run.size, 1)
        arguments = (
            *(victim.params, (run.prefix,), run.batch),
            *victim.put_examples((np.zeros(empty, np.int32), np.zeros(empty, bool))),
        )
        scores = score(victim.definition, *arguments, at_once=at_once)
        reading = frame.prefix_program(run.inputs.victim, run.batch)
        asking = functools.partial(score, victim.definition, at_once=at_once)
        executed = flops.executed_flops(reading.function, *reading.arguments)
        executed += flops.executed_flops(asking, *arguments)
        success, logprobs = (x[:, 0] for x in fetch((scores.success, scores.answer)))
        for place, prompt in enumerate(batch.prompts):
            kept = logprobs[place, : len(prompt.goal_ids)].tolist()
            cost = Flops(
                flops.forward_flops(victim.num_params, prompt.length), executed // run.size
            )
            answers[prompt.example.example_id] = Answer(not success[place], [], kept, None, cost)
    return answers
