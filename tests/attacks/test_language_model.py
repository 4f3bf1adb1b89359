"""Attacks on language models: the same searches, toward a text that the model should go on with."""

import dataclasses

import numpy as np
import pytest

from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.search import SearchConfig, plan, prepare
from robustjax.data.prompts import Example
from tests.attacks.reference import (
    Reference,
    assert_follows_gcg,
    assert_follows_random_token,
    assert_reports_what_was_scored,
)
from tests.attacks.tiny import (
    ATTACK,
    CONFIG,
    INSERT,
    TEXTS,
    attack_all,
    make_victim,
    starts_of,
)
from tests.models.tiny import CONFIGS

GOALS = (" yes, here it is", " no", " the prize is yours", " A")


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return make_victim(tiny_tokenizer, head="lm")


@pytest.fixture(scope="module")
def asked():
    """Prompts with goals of different lengths."""
    return [
        Example(10 + i, "Say it.\n\n", (text,), "\n\nAnswer:", 0, 1, " other", GOALS[i % 4])
        for i, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("family", ["neox", "qwen2"])
def test_gcg_is_the_plain_algorithm(family, tiny_tokenizer, asked):
    config = dataclasses.replace(CONFIGS[family], vocab=512, context=512)
    model = make_victim(tiny_tokenizer, head="lm", config=config)
    example = asked[0]
    record = attack_all(model, [example], ATTACK, seed=3)[example.example_id]
    start = starts_of(model, [example], ATTACK, seed=3)[example.example_id]
    assert_follows_gcg(model, example, INSERT, ATTACK, 3, record, start)
    assert_reports_what_was_scored(model, example, INSERT, 1.0, record)


def test_random_token_is_the_plain_algorithm(model, asked):
    attack = RandomToken(num_iterations=6, num_tokens=3, iterations_per_pass=4)
    records = attack_all(model, asked[:3], attack, seed=3)
    for example in asked[:3]:
        record = records[example.example_id]
        assert_follows_random_token(model, example, INSERT, attack, 3, record)
        assert_reports_what_was_scored(model, example, INSERT, 1.0, record)


def test_company_and_order_change_no_bit(model, asked):
    alone = attack_all(model, asked[:1], ATTACK, seed=3)
    alone |= attack_all(model, asked[2:3], ATTACK, seed=3)
    together = attack_all(model, asked[:4][::-1], ATTACK, seed=3)
    for one, record in alone.items():
        assert together[one] == record


def test_batch_size_changes_nothing_but_rounding(model, asked):
    config = dataclasses.replace(CONFIG, batch_size=1)
    records = attack_all(model, asked[:2], ATTACK, seed=3, config=config)
    start = starts_of(model, asked[:2], ATTACK, seed=3)
    for example in asked[:2]:
        one = example.example_id
        assert_follows_gcg(model, example, INSERT, ATTACK, 3, records[one], start[one])


def test_a_clean_text_that_is_answered_as_the_attacker_wants_is_not_attacked(model, asked):
    """And the log-probabilities of the goal are those of the whole text."""
    reference = Reference(model, asked[0], INSERT, ATTACK, 0)
    (said,) = model.tokenizer.decode([[int(reference.logits("").argmax(-1)[0])]])
    already = dataclasses.replace(asked[0], example_id=99, proxy_gen_target=said)
    records = attack_all(model, [*asked[:2], already], ATTACK, seed=3)
    assert not records[99].correct_before and records[99].attacked_text is None
    for example in asked[:2]:
        record, clean = records[example.example_id], Reference(model, example, INSERT, ATTACK, 0)
        assert record.correct_before and record.clean_logits == []
        logprobs = clean.logits("") - np.log(np.exp(clean.logits("")).sum(-1, keepdims=True))
        expected = logprobs[np.arange(len(clean.goal_ids)), clean.goal_ids]
        np.testing.assert_allclose(record.clean_target_logprobs, expected, atol=1e-5)


def test_what_cannot_be_asked_is_said(model, asked):
    empty = dataclasses.replace(asked[0], proxy_gen_target="")
    long = dataclasses.replace(asked[1], proxy_gen_target=" yes" * 600)
    records = attack_all(model, [empty, long, asked[2]], ATTACK, seed=3)
    assert "go on with is empty" in records[empty.example_id].failure
    assert "more than the context of 512" in records[long.example_id].failure
    assert records[asked[2].example_id].failure is None


def test_goals_of_different_lengths_have_buckets_of_their_own(model, asked):
    prompts, _ = prepare(model, asked, INSERT, ATTACK, 0)
    batches = plan(prompts, SearchConfig(batch_size=4, edges=(48, 96)))
    widths = {len(prompt.goal_ids): b.goal_width for b in batches for prompt in b.prompts}
    assert all(length <= width for length, width in widths.items())
    assert all(width == length for length, width in widths.items() if length <= 8)
    assert all(width in (12, 16) for length, width in widths.items() if length > 8)
