"""RandomToken against the plain algorithm, and what its record says."""

import dataclasses

import numpy as np
import pytest

from robustjax.attacks import random_token
from robustjax.attacks.random_token import RandomToken
from robustjax.errors import UserError
from tests.attacks.reference import (
    assert_follows_random_token,
    assert_reports_what_was_scored,
    plain_random_token,
)
from tests.attacks.tiny import (
    INSERT,
    OVERWRITE,
    TEXTS,
    TEXTS_BY_POSITION,
    attack_all,
    letters_tokenizer,
    make_examples,
    make_run,
    make_victim,
)

# Two passes, the second one half full.
ATTACK = RandomToken(num_iterations=24, num_tokens=4, iterations_per_pass=16)


@pytest.mark.parametrize("kinds", [INSERT, OVERWRITE], ids=["insert", "overwrite"])
def test_it_is_the_plain_algorithm(victim, kinds):
    examples = make_examples(victim, kinds=kinds)[:4]

    records = attack_all(victim, examples, ATTACK, kinds, seed=3)

    assert sum(record.num_retokenised for record in records.values()) > 0
    for example in examples:
        record = records[example.example_id]
        assert_follows_random_token(victim, example, kinds, ATTACK, 3, record)
        assert_reports_what_was_scored(victim, example, kinds, 1.0, record)


@pytest.mark.parametrize("position", [0.9, 0.0])
def test_it_is_the_plain_algorithm_inside_a_chunk(victim, position):
    examples = make_examples(victim, TEXTS_BY_POSITION[position])
    attack = dataclasses.replace(ATTACK, position=position)

    records = attack_all(victim, examples, attack)

    for example in examples:
        record = records[example.example_id]
        assert_follows_random_token(victim, example, INSERT, attack, 0, record)
        assert_reports_what_was_scored(victim, example, INSERT, position, record)


def test_the_first_success_is_repeated(victim, examples):
    records = attack_all(victim, examples, ATTACK).values()

    broken = [record for record in records if record.success]
    assert 0 < len(broken) < len(records)
    for record in broken:
        success = [step.success for step in record.iterations]
        first = success.index(True)
        assert success == [False] * first + [True] * (len(success) - first)
        assert all(step == record.iterations[first] for step in record.iterations[first:])
        assert len({step.slot_text for step in record.iterations[: first + 1]}) == first + 1
    for record in records:
        assert len(record.iterations) == ATTACK.num_iterations
        if not record.success:
            assert not any(step.success for step in record.iterations)


@pytest.mark.parametrize("iterations_per_pass", [24, 7])
def test_passes_change_nothing_but_rounding(victim, examples, iterations_per_pass):
    attack = dataclasses.replace(ATTACK, iterations_per_pass=iterations_per_pass)

    expected = attack_all(victim, examples[:4], ATTACK)
    got = attack_all(victim, examples[:4], attack)

    for one, record in got.items():
        other = expected[one]
        for a, b in zip(record.iterations, other.iterations, strict=True):
            assert (a.slot_text, a.success) == (b.slot_text, b.success)
            np.testing.assert_allclose(a.loss, b.loss, rtol=0, atol=1e-5)
        assert record.num_retokenised == other.num_retokenised
        assert record.flops_algorithmic == other.flops_algorithmic


def test_more_iterations_begin_with_the_same_ones(victim, examples):
    fewer = dataclasses.replace(ATTACK, num_iterations=16)

    short = attack_all(victim, examples[:4], fewer)
    long = attack_all(victim, examples[:4], ATTACK)

    for one, record in short.items():
        assert record.iterations == long[one].iterations[:16]


def test_no_slot_holds_a_special_id():
    """Not even where the text of ordinary tokens spells one: that draw is thrown away."""
    tokenizer = letters_tokenizer("abcd", special="ab")
    victim = make_victim(tokenizer, vocab=16, width=8)
    (example,) = make_examples(victim, ["cd"])
    attack = RandomToken(num_iterations=24, num_tokens=4, iterations_per_pass=24)
    run = make_run(victim, [example], attack)

    iterations = np.arange(1, 25, dtype=np.uint32)
    drawn = random_token.draw_fitting(attack, run, iterations, np.zeros(4, bool))

    assert set(np.unique(drawn.slots[drawn.mask])) == {1, 2, 3, 4}
    slots = zip(drawn.slots[0], drawn.mask[0], strict=True)
    texts = tokenizer.decode([slot[real] for slot, real in slots])
    assert not any("ab" in text for text in texts)
    assert drawn.redrawn[0].any()
    assert not drawn.stuck.any()


@pytest.mark.parametrize("per_pass", [24, 5])
@pytest.mark.parametrize("stop_at_success", [False, True])
def test_a_slot_that_nothing_fits_matters_before_a_success_only(
    tiny_tokenizer, monkeypatch, per_pass, stop_at_success
):
    attack = dataclasses.replace(
        ATTACK, iterations_per_pass=per_pass, stop_at_success=stop_at_success
    )
    victim = make_victim(tiny_tokenizer, classes=3, weights=3.0)
    examples = make_examples(victim)
    for seed in range(20):  # until an example is broken in the middle
        expected = attack_all(victim, examples, attack, seed=seed)
        first = {
            one: next((i for i, step in enumerate(record.iterations, 1) if step.success), 0)
            for one, record in expected.items()
        }
        chosen = max(first, key=lambda one: first[one] % ATTACK.num_iterations)
        if first[chosen] > 1:
            break
    assert 1 < first[chosen] < ATTACK.num_iterations
    fitting = random_token.draw_fitting

    def without(iteration):
        def draw(attack, run, iterations, given_up):
            drawn = fitting(attack, run, iterations, given_up)
            rows = [prompt.example.example_id == chosen for prompt in run.prompts]
            stuck = np.array(rows)[:, None] & (iterations == iteration)[None]
            return drawn._replace(stuck=stuck)

        monkeypatch.setattr(random_token, "draw_fitting", draw)
        return attack_all(victim, examples, attack, seed=seed)

    assert without(first[chosen] + 1) == expected
    assert without(first[chosen] - 1)[chosen].failure.startswith("no random slot of")
    lost = without(first[chosen])
    assert lost[chosen].failure.startswith("no random slot of")
    assert {one: lost[one] for one in first if one != chosen} == {
        one: expected[one] for one in first if one != chosen
    }


def test_draws_do_not_depend_on_the_place_in_the_batch(victim, examples):
    slots, thrown_away = plain_random_token(victim, examples[2], INSERT, ATTACK, 0)
    for members in (examples[:4], examples[2:3], examples[3:1:-1]):
        run = make_run(victim, members, ATTACK)
        row = members.index(examples[2])
        for begin in (1, 17):
            iterations = np.arange(begin, begin + 16, dtype=np.uint32)
            drawn = random_token.draw_fitting(ATTACK, run, iterations, np.zeros(4, bool))
            for column, iteration in enumerate(iterations):
                ids = drawn.slots[row, column][drawn.mask[row, column]].tolist()
                expected = slots[iteration - 1] if iteration <= ATTACK.num_iterations else []
                assert ids == expected


def test_any_other_class_is_a_success_for_three_classes(tiny_tokenizer):
    victim = make_victim(tiny_tokenizer, classes=3)
    examples = make_examples(victim, TEXTS[:4])

    for record in attack_all(victim, examples, ATTACK).values():
        assert len(record.logits) == 3
        assert record.success == (int(np.argmax(record.logits)) != record.label)
        step = record.iterations[-1]
        logits = np.array(record.logits, np.float64)
        loss = np.log(np.exp(logits - logits[record.target_label]).sum())
        np.testing.assert_allclose(step.loss, loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"num_tokens": -1}, "num_tokens=-1"),
        ({"iterations_per_pass": 0}, "iterations_per_pass=0"),
        ({"position": 1.01}, "position=1.01"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        RandomToken(**settings)
