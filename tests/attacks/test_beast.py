"""BEAST against the plain algorithm, its optimum against exhaustive search, and its companion."""

import dataclasses
import itertools

import pytest

from robustjax.attacks import beast
from robustjax.attacks.beast import BEAST
from robustjax.data.prompts import Example
from robustjax.errors import UserError
from robustjax.evaluation.evaluate import attack_examples
from tests.attacks.beam_reference import assert_follows_beast
from tests.attacks.reference import assert_reports_what_was_scored, losses_of_texts
from tests.attacks.tiny import (
    CONFIG,
    INSERT,
    TEXTS,
    TEXTS_BY_POSITION,
    attack_all,
    letters_tokenizer,
    make_examples,
    make_victim,
)
from tests.models.tiny import CONFIGS

ATTACK = BEAST(num_iterations=3, beam_width=3, branch_factor=4)


@pytest.fixture(scope="module")
def sampler(tiny_tokenizer):
    return make_victim(tiny_tokenizer, head="lm", weights=1.0)


def attack_with(victim, sampler, examples, attack=ATTACK, **options):
    """Records by example id; a language model is its own sampler."""
    companion = None if sampler is victim else sampler
    return attack_all(victim, examples, attack, companion=companion, **options)


def assert_all_follow(victim, sampler, examples, attack=ATTACK, seed=0, config=CONFIG):
    records = attack_with(victim, sampler, examples, attack, seed=seed, config=config)
    assert len(records) == len(examples)
    for example in examples:
        record = records[example.example_id]
        assert_follows_beast(victim, sampler, example, INSERT, attack, seed, record)
        assert_reports_what_was_scored(victim, example, INSERT, attack.position, record)
        losses = [step.loss for step in record.iterations]
        assert losses == sorted(losses, reverse=True), "the best so far is shown"
    return records


def test_it_is_the_plain_algorithm(victim, sampler, examples):
    records = assert_all_follow(victim, sampler, examples[:3], seed=3)

    assert sum(record.num_retokenised for record in records.values()) > 0
    assert len({record.iterations[-1].slot_text for record in records.values()}) == 3


@pytest.mark.parametrize(("beam_width", "branch_factor"), [(5, 2), (2, 5)])
def test_beams_and_branches_may_differ_in_number(
    victim, sampler, examples, beam_width, branch_factor
):
    attack = dataclasses.replace(ATTACK, beam_width=beam_width, branch_factor=branch_factor)

    records = assert_all_follow(victim, sampler, examples[:2], attack)

    counts = {tuple(step.num_valid for step in record.iterations) for record in records.values()}
    slots = [1, min(beam_width, branch_factor)]
    slots.append(min(beam_width, slots[1] * branch_factor))
    assert counts == {tuple(branch_factor * count for count in slots)}


@pytest.mark.parametrize("family", ["neox", "qwen2"])
def test_a_language_model_asks_itself(family, tiny_tokenizer):
    config = dataclasses.replace(CONFIGS[family], vocab=512, context=512)
    scanned = family == "qwen2"
    model = make_victim(tiny_tokenizer, head="lm", config=config, weights=1.0, scanned=scanned)
    asked = [
        Example(10 + i, "Say it.\n\n", (text,), "\n\nAnswer:", 0, 1, " other", " the prize")
        for i, text in enumerate(TEXTS[:2])
    ]

    assert_all_follow(model, model, asked)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_changes_nothing_but_rounding(victim, sampler, examples, batch_size):
    config = dataclasses.replace(CONFIG, batch_size=batch_size)

    assert_all_follow(victim, sampler, examples[:2], config=config)


@pytest.mark.parametrize("chunk", [1, 6])
def test_chunk_changes_nothing_but_rounding(victim, sampler, examples, chunk):
    assert_all_follow(
        victim, sampler, examples[:2], dataclasses.replace(ATTACK, candidate_chunk=chunk)
    )


@pytest.mark.parametrize("position", [0.9, 0.0])
def test_it_is_the_plain_algorithm_inside_a_chunk(victim, sampler, position):
    examples = make_examples(victim, TEXTS_BY_POSITION[position])

    assert_all_follow(victim, sampler, examples, dataclasses.replace(ATTACK, position=position))


def test_nothing_needs_to_stand_before_the_slot(victim, sampler):
    examples = [
        dataclasses.replace(example, instructions="")
        for example in make_examples(victim, TEXTS_BY_POSITION[0.0])
    ]
    labels = victim.logits([example.text for example in examples]).argmax(-1).tolist()
    examples = [
        dataclasses.replace(example, label=label, target_label=1 - label)
        for example, label in zip(examples, labels, strict=True)
    ]

    assert_all_follow(victim, sampler, examples, dataclasses.replace(ATTACK, position=0.0))


def make_toy(letters, **options):
    tokenizer = letters_tokenizer(letters, **options)
    victim = make_victim(tokenizer, vocab=16, width=8)
    return victim, make_victim(tokenizer, vocab=16, width=8, head="lm", weights=1.0)


def test_it_finds_the_best_of_all_slots():
    """And proposes only the letters: no special id, no padded row of the embedding."""
    victim, sampler = make_toy("abcdefghijkl")
    examples = make_examples(victim, ["abc", "feed", "lake", "jail"])
    attack = BEAST(num_iterations=2, beam_width=12, branch_factor=12)

    records = attack_with(victim, sampler, examples, attack)

    texts = [*"abcdefghijkl", *map("".join, itertools.product("abcdefghijkl", repeat=2))]
    for example in examples:
        record = records[example.example_id]
        loss = losses_of_texts(victim, example, texts)
        for step, shown in zip(record.iterations, (texts[:12], texts), strict=True):
            assert loss[step.slot_text] <= min(loss[text] for text in shown) + 1e-5
        assert [step.num_valid for step in record.iterations] == [12, 144]
        assert record.num_retokenised == 0


def test_text_that_spells_a_special_token_is_passed_over():
    victim, sampler = make_toy("abcd", special="ab")
    (example,) = make_examples(victim, ["cd"])
    attack = BEAST(num_iterations=3, beam_width=4, branch_factor=4)

    record = attack_with(victim, sampler, [example], attack)[example.example_id]

    assert assert_follows_beast(victim, sampler, example, INSERT, attack, 0, record) > 0
    # After one of the four letters another one spells it.
    assert [step.num_valid for step in record.iterations[:2]] == [4, 15]
    assert record.num_retokenised >= 1


def test_a_token_that_fits_is_found_though_one_only_is_wanted():
    """Behind the text before the slot only one letter of twelve does not become another token."""
    tokenizer = letters_tokenizer("abcdefghijkl")
    tokenizer._backend.add_tokens([f"a{letter}" for letter in "abcdefghijk"])
    victim = make_victim(tokenizer, vocab=32, width=8)
    sampler = make_victim(tokenizer, vocab=32, width=8, head="lm", weights=1.0)
    examples = make_examples(victim, ["bca", "dea", "faca", "hila", "jka", "ela"])
    attack = BEAST(num_iterations=2, beam_width=1, branch_factor=1)

    records = attack_with(victim, sampler, examples, attack)

    for example in examples:
        record = records[example.example_id]
        assert_follows_beast(victim, sampler, example, INSERT, attack, 0, record)
        assert record.iterations[0].slot_text == "l"
    assert max(record.num_retokenised for record in records.values()) > 3


def test_a_companion_that_is_missing_or_does_not_fit_is_refused(victim, sampler, examples):
    def refused(victim, companion, message):
        with pytest.raises(UserError, match=message):
            attack_examples(victim, examples[:1], INSERT, ATTACK, companion=companion)

    refused(victim, None, "^no companion: beast samples tokens from a language model; give one")
    refused(victim, victim, "^companion tiny: beast needs a language model; give one$")
    _, other = make_toy("abcd")
    refused(victim, other, "^companion tiny has another tokenizer than tiny; give a model of")
    refused(sampler, other, "has another tokenizer")
    refused(sampler, victim, "needs a language model")


def test_a_prompt_too_long_for_the_companion_says_so_and_the_run_goes_on(victim, examples):
    """Larger models of a family may read longer prompts than the smaller ones."""
    lengths = [len(victim.tokenizer.encode([one.text])[0]) for one in examples[:3]]
    assert lengths.count(max(lengths)) == 1
    room = max(lengths) + beast.slot_width(ATTACK) - 1
    short = make_victim(victim.tokenizer, head="lm", context=room)

    records = attack_with(victim, short, examples[:3], ATTACK)

    for example, length in zip(examples, lengths, strict=False):
        expected = None
        if length == max(lengths):
            expected = (
                f"prompt and slot take {room + 1} tokens, more than the context of the companion, "
                f"{room}"
            )
        assert records[example.example_id].failure == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"beam_width": 0}, "beam_width=0"),
        ({"branch_factor": True}, "branch_factor=True"),
        ({"position": -0.1}, "position=-0.1"),
        ({"candidate_chunk": 7}, r"candidate_chunk=7 does not divide beam_width \* branch_factor"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        BEAST(**settings)
