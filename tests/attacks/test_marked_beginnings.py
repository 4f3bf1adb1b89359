"""Attacks on models whose tokenizer marks the beginning of a text, as Llama-2's does."""

import dataclasses

import numpy as np
import pytest

from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.retokenize import SlotText, clean_start, random_start
from robustjax.data.prompts import split_at_slot
from tests.attacks.reference import TOLERANCE, WIDTH, cross_entropy, whole_scores
from tests.attacks.tiny import (
    ATTACK,
    INSERT,
    TEXTS,
    TEXTS_BY_POSITION,
    attack_all,
    make_examples,
    make_victim,
    starts_of,
)
from tests.tokenizer_kinds import MARKING, Plainly

POSITIONS = {"suffix": 1.0, "infix": 0.9, "prefix": 0.0}
VOCAB = 3_008


@pytest.fixture(scope="module", params=MARKING)
def plainly(request):
    return Plainly(request.param)


@pytest.fixture(scope="module")
def victim(plainly):
    return make_victim(plainly.tokenizer, vocab=VOCAB)


def without_instructions(examples):
    return [dataclasses.replace(example, instructions="") for example in examples]


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("find", [clean_start, random_start])
def test_a_clean_start_is_found_everywhere(find, plainly, position):
    tokenizer = plainly.tokenizer
    examples = make_examples(make_victim(tokenizer, vocab=VOCAB, head="lm"), TEXTS)
    examples += without_instructions(examples[:2])
    for example in examples:
        before, after = split_at_slot(example, INSERT, position)
        surrounding = SlotText.surrounding(tokenizer, before, after)

        slot = find(tokenizer, surrounding, 10, 0, example.example_id)

        assert len(slot) == 10
        whole = plainly.whole(before + plainly.text(slot) + after)
        assert whole == plainly.opening(before) + slot + plainly.inside(after)
        assert list(surrounding.before_ids) == plainly.opening(before)
        assert list(surrounding.after_ids) == plainly.inside(after)


def test_the_start_is_the_pattern_where_it_is_clean(plainly):
    surrounding = SlotText.surrounding(plainly.tokenizer, "Is it spam?\n\nfox", "\n\nAnswer:")

    slot = clean_start(plainly.tokenizer, surrounding, 5, 0, 0)

    assert plainly.text(slot) == "@&@&@"


def assert_reports_what_was_scored(victim, example, record, position):
    """The victim says of the text in the record what is recorded of the ids that were scored."""
    assert record.failure is None
    before, after = split_at_slot(example, INSERT, position)
    texts = [before + step.slot_text + after for step in record.iterations]
    assert record.attacked_text == texts[-1]
    logits = victim.logits(texts)
    recorded = [step.logits for step in record.iterations]
    np.testing.assert_allclose(recorded, logits, rtol=0, atol=TOLERANCE)
    assert any(step.num_valid for step in record.iterations)


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
def test_gcg_reports_what_was_scored(victim, plainly, position):
    attack = dataclasses.replace(ATTACK, position=position)
    examples = make_examples(victim, TEXTS_BY_POSITION[position])

    records = attack_all(victim, examples, attack)

    for example in examples:
        record = records[example.example_id]
        assert_reports_what_was_scored(victim, example, record, position)
        before, after = split_at_slot(example, INSERT, position)
        outside = len(plainly.opening(before)) + len(plainly.inside(after))
        # None of the four tokens ever became more or fewer.
        for step in record.iterations:
            assert len(plainly.whole(before + step.slot_text + after)) == outside + 4


@pytest.mark.parametrize("plainly", ["llama"], indirect=True)
@pytest.mark.parametrize(
    "attack",
    [
        RandomToken(num_iterations=3, num_tokens=4),
        BeamSearch(num_iterations=2, num_tokens=4, num_candidates=8, beam_width=2),
        BEAST(num_iterations=3, beam_width=2, branch_factor=3),
    ],
    ids=lambda attack: attack.name,
)
def test_every_attack_reports_what_was_scored(victim, plainly, attack):
    companion = None
    if attack.needs_companion:
        companion = make_victim(plainly.tokenizer, vocab=VOCAB, head="lm")
    for position, change in ((0.9, list), (0.0, without_instructions)):
        examples = change(make_examples(victim, TEXTS_BY_POSITION[position]))

        records = attack_all(
            victim,
            examples,
            dataclasses.replace(attack, position=position),
            only_correct=False,
            companion=companion,
        )

        for example in examples:
            assert_reports_what_was_scored(victim, example, records[example.example_id], position)


def test_a_language_model_is_driven_toward_the_tokens_that_would_follow(plainly):
    model = make_victim(plainly.tokenizer, vocab=VOCAB, head="lm")
    examples = [
        dataclasses.replace(example, proxy_gen_target=" the prize")
        for example in make_examples(model, TEXTS[:2])
    ]
    attack = GCG(num_iterations=2, num_tokens=4, num_candidates=4, top_k=4)
    assert len(starts_of(model, examples, attack)) == 2

    records = attack_all(model, examples, attack)

    for example in examples:
        record = records[example.example_id]
        prompt = plainly.whole(record.attacked_text)
        ids = plainly.whole(record.attacked_text + " the prize")
        assert ids == prompt + plainly.inside(" the prize")
        mask = np.arange(WIDTH) < len(ids)
        row = np.pad(np.array(ids, np.int32), (0, WIDTH - len(ids)))
        scores = np.asarray(whole_scores(model.definition, model.params, row[None], mask[None]))
        told = scores[0, len(prompt) - 1 : len(ids) - 1]
        wanted = plainly.inside(" the prize")
        expected = [-cross_entropy(*pair) for pair in zip(told, wanted, strict=True)]
        np.testing.assert_allclose(record.target_logprobs, expected, rtol=0, atol=TOLERANCE)
