"""Examples that cannot be attacked: a record with the reason, and the run goes on."""

import dataclasses

import pytest

from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.evaluation.evaluate import attack_examples
from robustjax.evaluation.records import summarise
from tests.attacks.tiny import CONFIG, INSERT, letters_tokenizer, make_examples, make_victim


def run(victim, examples, attack, **options):
    found, _ = attack_examples(victim, examples, INSERT, attack, config=CONFIG, **options)
    return {record.example_id: record for record in found}


@pytest.mark.parametrize(
    "attack",
    [
        GCG(num_iterations=2, num_tokens=1, num_candidates=1, top_k=4),
        RandomToken(num_iterations=2, num_tokens=1),
        BeamSearch(num_iterations=2, num_tokens=1, num_candidates=1, beam_width=1),
        BEAST(num_iterations=2, beam_width=1, branch_factor=1),
    ],
    ids=lambda attack: attack.name,
)
def test_what_cannot_be_attacked_says_why_and_the_run_goes_on(attack, tmp_path):
    """In this language `a` is the only free token, and two of them are a special one."""
    tokenizer = letters_tokenizer("a", special="aa")
    tokenizer._backend.add_tokens(list("bcdefghij"))
    victim = make_victim(tokenizer, vocab=16, width=8, context=48)
    companion = None
    if attack.needs_companion:
        companion = make_victim(tokenizer, vocab=16, width=8, context=48, head="lm")
    texts = ["dec", "bca", "c" * 26, "c" * 40, "fee"]
    fits = make_examples(victim, ["dec", "bca", "c" * 20, "c" * 20, "fee"])
    examples = [
        dataclasses.replace(example, content=(text,))
        for example, text in zip(fits, texts, strict=True)
    ]
    path = tmp_path / "records.jsonl"

    records = run(victim, examples, attack, only_correct=False, path=path, companion=companion)

    first, no_slot, no_room, too_long, last = (records[e.example_id] for e in examples)
    for record in (first, last):
        assert record.failure is None
        assert record.iterations[-1].slot_text == "a"
    assert "token" in no_slot.failure and "position 1.0" in no_slot.failure
    if attack.name == "beast":
        assert no_slot.failure == (
            "no token that the sampler proposes stands cleanly at position 1.0"
        )
    if attack.name in ("gcg", "beam_search"):
        assert no_slot.failure == (
            "no slot of 1 tokens re-tokenises to itself at position 1.0 (10,000 tried); with 'a' "
            "there, the token 'aa' reaches across the place where the attack slot begins"
        )
    assert no_room.failure.startswith("prompt and slot take")
    assert "context of 48" in no_room.failure
    assert too_long.failure == (
        "the text has 62 tokens; between 1 and the model's context of 48 are possible"
    )
    assert (too_long.correct_before, too_long.clean_logits) == (False, [])
    for record in (no_slot, no_room, too_long):
        assert (record.attacked_text, record.iterations, record.success) == (None, [], False)
    summary = summarise(list(records.values()))
    assert (summary["num_examples"], summary["num_failures"]) == (5, 3)
    # What failed is on record as well, and is taken over when the run goes on.
    options = {"only_correct": False, "path": path, "companion": companion}
    assert run(victim, examples, attack, **options) == records
