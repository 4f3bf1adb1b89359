"""Beam search against the plain algorithm, its optimum against exhaustive search."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from robustjax.attacks import beam_search
from robustjax.attacks.beam_search import Beam, BeamSearch
from robustjax.attacks.frame import BatchRun
from robustjax.attacks.verdict import Scores
from robustjax.data.prompts import Example
from robustjax.errors import UserError
from tests.attacks.beam_reference import assert_follows_beam_search
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
    starts_of,
)
from tests.models.tiny import CONFIGS

ATTACK = BeamSearch(num_iterations=4, num_tokens=4, num_candidates=16, beam_width=3)


def assert_all_follow(victim, examples, attack=ATTACK, seed=0, config=CONFIG, **options):
    records = attack_all(victim, examples, attack, seed=seed, config=config)
    starts = starts_of(victim, examples, attack, seed=seed)
    assert len(records) == len(examples)
    for example in examples:
        known = records[example.example_id], starts[example.example_id]
        assert_follows_beam_search(victim, example, INSERT, attack, seed, *known, **options)
    return records


def test_it_is_the_plain_algorithm(victim, examples):
    records = assert_all_follow(victim, examples[:3], seed=7)

    losses = [[step.loss for step in record.iterations] for record in records.values()]
    assert any(b > a for path in losses for a, b in itertools.pairwise(path)), (
        "the old beam is not kept: it may become worse"
    )


def test_of_a_language_model_too(tiny_tokenizer):
    model = make_victim(tiny_tokenizer, head="lm")
    asked = [
        Example(10 + i, "Say it.\n\n", (text,), "\n\nAnswer:", 0, 1, " other", " the prize")
        for i, text in enumerate(TEXTS[:2])
    ]
    records = assert_all_follow(model, asked, dataclasses.replace(ATTACK, num_iterations=2))

    for example in asked:
        record = records[example.example_id]
        assert_reports_what_was_scored(model, example, INSERT, 1.0, record)


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_of_qwen2_too(tiny_tokenizer, scanned):
    shape = dataclasses.replace(CONFIGS["qwen2"], vocab=512, context=512)
    victim = make_victim(tiny_tokenizer, config=shape, scanned=scanned)

    assert_all_follow(victim, make_examples(victim)[:2])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_changes_nothing_but_rounding(victim, examples, batch_size):
    config = dataclasses.replace(CONFIG, batch_size=batch_size)

    assert_all_follow(victim, examples[:2], config=config)


@pytest.mark.parametrize("chunk", [1, 16])
def test_chunk_changes_nothing_but_rounding(victim, examples, chunk):
    attack = dataclasses.replace(ATTACK, candidate_chunk=chunk)

    assert_all_follow(victim, examples[:2], attack)


@pytest.mark.parametrize("position", sorted(TEXTS_BY_POSITION))
def test_what_is_reported_is_what_was_scored(victim, position):
    attack = dataclasses.replace(ATTACK, position=position)
    examples = make_examples(victim, TEXTS_BY_POSITION[position])

    records = attack_all(victim, examples, attack)

    for example in examples:
        record = records[example.example_id]
        assert_reports_what_was_scored(victim, example, INSERT, position, record)


def test_it_finds_the_best_of_all_slots():
    victim = make_victim(letters_tokenizer(), vocab=16, width=8)
    examples = make_examples(victim, ["abc", "feed", "lake", "jail"])
    attack = BeamSearch(num_iterations=4, num_tokens=2, num_candidates=128, beam_width=12)

    records = attack_all(victim, examples, attack)

    texts = ["".join(letters) for letters in itertools.product("abcdefghijkl", repeat=2)]
    for example in examples:
        loss = losses_of_texts(victim, example, texts)
        steps = records[example.example_id].iterations
        for step in steps:
            np.testing.assert_allclose(step.loss, loss[step.slot_text], rtol=0, atol=1e-5)
        assert min(loss[step.slot_text] for step in steps) <= min(loss.values()) + 1e-5


def filtered(monkeypatch, most):
    """Lets at most `most(iteration)` candidates survive; returns the same for the reference."""
    survivors, calls = BatchRun.survivors, itertools.count(1)

    def few(run, candidates, current):
        valid = survivors(run, candidates, current)
        return valid & (np.cumsum(valid, -1) <= most(next(calls)))

    monkeypatch.setattr(BatchRun, "survivors", few)
    return {"keep": lambda iteration, survivors: survivors[: most(iteration)]}


def test_when_no_candidate_survives_the_beam_stays(victim, examples, monkeypatch):
    options = filtered(monkeypatch, lambda iteration: 0 if iteration == 2 else 99)

    records = assert_all_follow(victim, examples[:2], **options)

    for record in records.values():
        first, second, third, _ = record.iterations
        assert second == dataclasses.replace(first, num_valid=0)
        assert third.num_valid > 0
        assert third.slot_text != second.slot_text


def test_a_beam_of_fewer_members_goes_on_from_those(victim, examples, monkeypatch):
    options = filtered(monkeypatch, lambda iteration: 2)

    records = assert_all_follow(victim, examples[:2], **options)

    assert {step.num_valid for record in records.values() for step in record.iterations} == {2}


def test_a_tokenizer_without_clean_replacements_keeps_its_start(victim, examples, monkeypatch):
    filtered(monkeypatch, lambda iteration: 0)
    records = attack_all(victim, examples[:2], ATTACK)
    starts = starts_of(victim, examples[:2], ATTACK)

    for example_id, record in records.items():
        (text,) = victim.tokenizer.decode([starts[example_id]])
        assert {(step.slot_text, step.num_valid) for step in record.iterations} == {(text, 0)}
        assert np.isfinite(record.logits).all()


def test_ties_take_the_first_candidate_and_invalid_ones_never_win():
    old = Beam(
        np.full((3, 2, 2), 90, np.int32),
        np.array([[True, False]] * 3),
        np.full(3, 0.7, np.float32),
        np.zeros(3, bool),
        np.full((3, 2), -1, np.float32),
        np.full(3, 9, np.int32),
    )
    scores = Scores(
        np.array([[0.1, 0.5, 0.5, 0.5], [0.1, 0.2, 0.9, 0.4], [0.1] * 4], np.float32),
        np.array([[True, False, True, True], [True] * 4, [True] * 4]),
        np.arange(24, dtype=np.float32).reshape(3, 4, 2),
    )
    valid = np.array([[False, True, True, True], [False, False, True, False], [False] * 4])
    proposed = np.arange(24, dtype=np.int32).reshape(3, 4, 2)

    got = beam_search.select(*jax.tree.map(jax.numpy.asarray, (old, proposed, scores, valid)))

    np.testing.assert_array_equal(got.members[0], [[2, 3], [4, 5]])
    np.testing.assert_array_equal(got.members[1, 0], [12, 13])  # although it is a worse one
    np.testing.assert_array_equal(got.members[2], [[90, 90], [90, 90]])
    np.testing.assert_array_equal(got.is_member, [[True, True], [True, False], [True, False]])
    np.testing.assert_allclose(got.loss, [0.5, 0.9, 0.7])
    np.testing.assert_array_equal(got.success, [False, True, False])
    np.testing.assert_array_equal(got.answer, [[2, 3], [12, 13], [-1, -1]])
    np.testing.assert_array_equal(got.num_valid, [3, 1, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"num_tokens": 0}, "num_tokens=0"),
        ({"num_candidates": 0}, "num_candidates=0"),
        ({"beam_width": 0}, "beam_width=0"),
        ({"beam_width": True}, "beam_width=True"),
        ({"beam_width": 9, "num_candidates": 8}, "beam_width=9 is more than num_candidates=8"),
        ({"candidate_chunk": 48}, "candidate_chunk=48 does not divide num_candidates=128"),
        ({"position": 1.5}, "position=1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        BeamSearch(**settings)
