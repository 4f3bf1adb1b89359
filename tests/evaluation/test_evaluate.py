"""Attacking examples: bit for bit the same in any company, any order, after any interruption."""

import dataclasses
import functools
import json
import math
import weakref

import jax
import numpy as np
import pytest

from robustjax.attacks import random_token, search
from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.data.prompts import ChunkKind
from robustjax.errors import UserError
from robustjax.evaluation import evaluate
from robustjax.evaluation.evaluate import attack_examples
from robustjax.evaluation.flops import executed_flops
from robustjax.evaluation.records import read_records
from robustjax.models import transformer
from robustjax.runtime.mesh import MeshConfig
from tests.attacks.tiny import (
    ATTACK,
    CONFIG,
    INSERT,
    TEXTS,
    make_examples,
    make_run,
    make_victim,
)

ATTACKS = {
    "gcg": ATTACK,
    "random_token": RandomToken(num_iterations=24, num_tokens=4, iterations_per_pass=16),
    "beam_search": BeamSearch(
        num_iterations=3, num_tokens=4, num_candidates=16, beam_width=3, stop_at_success=True
    ),
    "beast": BEAST(num_iterations=3, beam_width=3, branch_factor=4),
}


@pytest.fixture(scope="module")
def victim(tiny_tokenizer):
    # A width of its own: tests/attacks compiles without optimisation, and bits are the point here.
    return make_victim(tiny_tokenizer, width=24)


@pytest.fixture(scope="module")
def examples(victim):
    return make_examples(victim)


@pytest.fixture(scope="module", params=sorted(ATTACKS))
def attack(request):
    return ATTACKS[request.param]


@pytest.fixture(scope="module")
def expected(victim, examples, attack):
    """Records by example id of one plain run."""
    return by_id(run(victim, examples, attack))


@functools.cache
def companion_of(tokenizer, devices=1):
    """A language model to sample tokens from."""
    return make_victim(tokenizer, width=24, head="lm", mesh=MeshConfig(data=devices))


def run(victim, examples, attack, **options):
    options = {"config": CONFIG} | options
    if attack.needs_companion:
        options["companion"] = companion_of(victim.tokenizer, victim.mesh.shape["data"])
    return attack_examples(victim, examples, INSERT, attack, **options)[0]


def by_id(records):
    assert len({record.example_id for record in records}) == len(records)
    return {record.example_id: record for record in records}


def test_a_run_attacks_everything_and_its_results_differ(expected, attack):
    assert len(expected) == len(TEXTS)
    assert len({record.iterations[-1].slot_text for record in expected.values()}) == len(TEXTS)
    for record in expected.values():
        assert len(record.iterations) == attack.num_iterations
        assert record.flops_executed > 0
        assert record.iterations[-1].logits == record.logits


def test_asking_about_the_clean_text_is_counted_by_itself(victim, examples, expected):
    """A forward pass of the text; what ran is one of its bucket, 32 or 64 tokens here."""
    params = transformer.abstract_params(victim.definition)
    for example in examples:
        record = expected[example.example_id]
        (ids,) = victim.tokenizer.encode([example.text])
        assert record.clean_flops_algorithmic == 2 * victim.num_params * len(ids)
        width = 32 if len(ids) <= 32 else 64
        row = jax.ShapeDtypeStruct((1, width), np.int32), jax.ShapeDtypeStruct((1, width), bool)
        forward = functools.partial(transformer.apply, victim.definition)
        assert record.clean_flops_executed == executed_flops(forward, params, *row)


def test_the_logits_of_an_iteration_are_those_of_its_text(victim, examples, expected):
    for example in examples[:3]:
        record = expected[example.example_id]
        before, after = record.attacked_text.rsplit(record.iterations[-1].slot_text, 1)
        texts = [before + step.slot_text + after for step in record.iterations]
        recorded = [step.logits for step in record.iterations]
        np.testing.assert_allclose(victim.logits(texts), recorded, atol=1e-4)


@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1, 7, 2, 5, 4]])
def test_the_order_of_examples_changes_no_bit(victim, examples, attack, expected, order):
    assert by_id(run(victim, [examples[i] for i in order], attack)) == expected


@pytest.mark.parametrize("members", [[0], [5], [2, 6, 4], [1, 2, 3, 4, 5]])
def test_the_company_of_an_example_changes_no_bit(victim, examples, attack, expected, members):
    records = by_id(run(victim, [examples[i] for i in members], attack))

    assert records == {examples[i].example_id: expected[examples[i].example_id] for i in members}


def test_the_example_id_and_the_seed_key_the_randomness(victim, examples, attack, expected):
    renamed = [dataclasses.replace(example, example_id=99) for example in examples[:1]]
    (other_id,) = run(victim, renamed, attack)
    (other_seed,) = run(victim, examples[:1], attack, seed=1)

    slots = [
        [step.slot_text for step in record.iterations]
        for record in (expected[examples[0].example_id], other_id, other_seed)
    ]
    assert slots[0] != slots[1] != slots[2] != slots[0]


def test_an_interrupted_run_goes_on_and_leaves_the_same_file(
    victim, examples, attack, tmp_path, monkeypatch
):
    whole = tmp_path / "whole.jsonl"
    records = run(victim, examples, attack, path=whole)
    assert read_records(whole) == records
    lines = whole.read_bytes().splitlines(keepends=True)
    planned = []
    run_batches = search.run_batches
    monkeypatch.setattr(
        search,
        "run_batches",
        lambda victim, batches, *rest, **named: (
            planned.append(len(batches)) or run_batches(victim, batches, *rest, **named)
        ),
    )
    path = tmp_path / "records.jsonl"

    for kept in range(len(lines) + 1):
        torn = lines[kept][: len(lines[kept]) // 2] if kept % 2 and kept < len(lines) else b""
        path.write_bytes(b"".join(lines[:kept]) + torn)
        assert run(victim, examples, attack, path=path) == records
        assert path.read_bytes() == whole.read_bytes()

    batches = planned[0]
    assert batches > 1
    assert planned[-1] == 0, "a finished file needs no search"
    assert sorted(planned, reverse=True) == planned, "what is recorded is not done again"
    assert set(planned) == set(range(batches + 1))


def test_four_devices_find_the_same_and_count_the_same(tiny_tokenizer, attack, expected):
    victim = make_victim(tiny_tokenizer, width=24, mesh=MeshConfig(data=4))
    spread = by_id(run(victim, make_examples(victim), attack))

    assert spread.keys() == expected.keys()
    for example_id, alone in expected.items():
        found = spread[example_id]
        assert [x.slot_text for x in found.iterations] == [x.slot_text for x in alone.iterations]
        losses = [[step.loss for step in one.iterations] for one in (found, alone)]
        np.testing.assert_allclose(*losses, atol=1e-5)
        assert found.flops_executed == alone.flops_executed > 0
        assert found.flops_algorithmic == alone.flops_algorithmic


def test_padding_counts_where_texts_of_an_example_differ_in_length(
    victim, examples, attack, expected
):
    config = dataclasses.replace(CONFIG, count_padding=True)
    padded = by_id(run(victim, examples, attack, config=config))

    for example_id, record in expected.items():
        counted = padded[example_id].flops_algorithmic
        assert dataclasses.replace(padded[example_id], flops_algorithmic=0) == (
            dataclasses.replace(record, flops_algorithmic=0)
        )
        assert counted >= record.flops_algorithmic
    more = sum(padded[i].flops_algorithmic - expected[i].flops_algorithmic for i in expected)
    assert bool(more) == (attack.name in ("random_token", "beast"))


def test_padded_texts_count_as_the_longest_of_their_pass(victim, examples):
    """By hand: 16 and then 8 random slots, each scored together."""
    attack = ATTACKS["random_token"]
    config = dataclasses.replace(CONFIG, count_padding=True)
    (record,) = run(victim, examples[:1], attack, config=config)
    plain = dataclasses.replace(attack, iterations_per_pass=1)
    (one_by_one,) = run(victim, examples[:1], plain, config=config)
    before = len(victim.tokenizer.encode([examples[0].text])[0])
    lengths = [before + len(slot) for slot in _drawn_slots(victim, examples[0], attack)]
    per_token = 2 * victim.num_params
    assert one_by_one.flops_algorithmic == per_token * sum(lengths)
    assert record.flops_algorithmic == per_token * (16 * max(lengths[:16]) + 8 * max(lengths[16:]))


def _drawn_slots(victim, example, attack):
    """The ids of every slot that random token search tries."""
    batch = make_run(victim, [example], attack)
    iterations = np.arange(1, attack.num_iterations + 1, dtype=np.uint32)
    drawn = random_token.draw_fitting(attack, batch, iterations, np.zeros(4, bool))
    return [ids[real] for ids, real in zip(drawn.slots[0], drawn.mask[0], strict=True)]


def test_records_of_another_attack_are_not_taken_over(victim, examples, monkeypatch, tmp_path):
    path = tmp_path / "records.jsonl"
    run(victim, examples[:2], ATTACK, path=path)
    before = path.read_bytes()
    longer = dataclasses.replace(examples[0], content=(examples[0].content[0] + " indeed",))
    relabelled = dataclasses.replace(examples[0], label=1 - examples[0].label)
    weights = jax.tree.map(np.copy, victim.params)
    weights["final_norm"]["bias"][0] += 1e-6
    others = {
        "seed": {"seed": 1},
        "iterations": {"attack": dataclasses.replace(ATTACK, num_iterations=2)},
        "position": {"attack": dataclasses.replace(ATTACK, position=0.5)},
        "candidates": {"attack": dataclasses.replace(ATTACK, num_candidates=8)},
        "examples": {"members": examples[1:3]},
        "text": {"members": [longer, examples[1]]},
        "label": {"members": [relabelled, examples[1]]},
        "kinds": {"kinds": (INSERT[0], ChunkKind.OVERWRITABLE, INSERT[2])},
        "victim": {"victim": dataclasses.replace(victim, params=weights)},
        "batches": {"config": dataclasses.replace(CONFIG, batch_size=3)},
        "wrong answers too": {"only_correct": False},
        "fewer": {"max_attacked": 1},
    }
    usual = {"victim": victim, "members": examples[:2], "attack": ATTACK, "kinds": INSERT}

    def asked(*_):
        raise AssertionError("the victim was asked first")

    monkeypatch.setattr(evaluate, "clean_answers", asked)
    for name, other in others.items():
        changed = usual | {"seed": 0, "config": CONFIG} | other
        chosen = {one: changed[one] for one in ("only_correct", "max_attacked") if one in changed}
        with pytest.raises(UserError, match="records of another attack"):
            attack_examples(
                *(changed[one] for one in ("victim", "members", "kinds", "attack")),
                seed=changed["seed"],
                config=changed["config"],
                path=path,
                **chosen,
            )
        assert path.read_bytes() == before, name


def test_records_without_the_fingerprint_of_their_search_are_left_alone(victim, examples, tmp_path):
    path = tmp_path / "records.jsonl"
    expected = run(victim, examples[:2], ATTACK, path=path)
    before = path.read_bytes()
    beside = tmp_path / "records.search.json"
    key = beside.read_bytes()
    beside.unlink()

    with pytest.raises(UserError, match=r"records\.search\.json, which says of what search"):
        run(victim, examples[:2], ATTACK, path=path)
    assert path.read_bytes() == before and not beside.exists()

    beside.write_bytes(key)
    assert run(victim, examples[:2], ATTACK, path=path) == expected


def test_wrong_answers_are_not_attacked_unless_wanted(victim, examples):
    wrong = dataclasses.replace(
        examples[0], label=examples[0].target_label, target_label=examples[0].label
    )
    members = [wrong, *examples[1:3]]

    skipped = by_id(run(victim, members, ATTACK))[wrong.example_id]
    assert not skipped.correct_before
    assert (skipped.attacked_text, skipped.iterations, skipped.failure) == (None, [], None)
    assert skipped.flops_algorithmic == skipped.flops_executed == 0

    attacked = by_id(run(victim, members, ATTACK, only_correct=False))[wrong.example_id]
    assert not attacked.correct_before
    assert len(attacked.iterations) == ATTACK.num_iterations
    assert attacked.clean_logits == skipped.clean_logits


def test_it_stops_when_enough_examples_are_attacked(victim, examples):
    wrong = dataclasses.replace(
        examples[1], label=examples[1].target_label, target_label=examples[1].label
    )
    members = [examples[0], wrong, *examples[2:]]

    for wanted, expected in ((1, [0]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (50, range(8))):
        found = by_id(run(victim, members, ATTACK, max_attacked=wanted))
        assert sorted(found) == [members[i].example_id for i in expected]


def test_a_finished_batch_makes_room_for_the_next(victim, examples, monkeypatch):
    runs, alive = [], []
    run_batch = search.run_batch

    def watched(attack, batch_run, *rest):
        runs.append(weakref.ref(batch_run))
        alive.append(sum(one() is not None for one in runs))
        return run_batch(attack, batch_run, *rest)

    monkeypatch.setattr(search, "run_batch", watched)
    run(victim, examples, ATTACK)
    assert alive == [1, 1]


def test_a_companion_on_other_devices_is_refused(victim, examples):
    elsewhere = companion_of(victim.tokenizer, 4)
    with pytest.raises(UserError, match=r"companion tiny lies on 4 devices,.* victim tiny on 1,"):
        attack_examples(victim, examples, INSERT, ATTACKS["beast"], companion=elsewhere)


def test_repeated_ids_are_refused(victim, examples):
    with pytest.raises(UserError, match="two examples have the example_id 10"):
        run(victim, [examples[0], examples[1], examples[0]], ATTACK)


def test_timing_is_json_and_apart_from_the_records(victim, examples, expected, attack):
    companion = companion_of(victim.tokenizer) if attack.needs_companion else None
    _, timing = attack_examples(
        victim, examples, INSERT, attack, config=CONFIG, companion=companion
    )

    figures = json.loads(json.dumps(timing.to_json()))
    assert set(figures) == {"seconds", "seconds_compile", "seconds_per_iteration_and_example"}
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    assert timing.seconds >= timing.seconds_compile + timing.seconds_search


def test_an_attack_is_described_by_its_name_and_every_setting():
    described = evaluate.describe(ATTACK)

    assert described.pop("name") == "gcg"
    assert GCG(**described) == ATTACK
