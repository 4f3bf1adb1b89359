"""`run_attack`: plain examples in, records out."""

import dataclasses

import pytest

import robustjax
from robustjax.data.prompts import ANSWER_PROMPT, ChunkKind
from robustjax.errors import UserError
from robustjax.evaluation import api as module
from robustjax.evaluation.api import AttackResult, run_attack
from robustjax.evaluation.evaluate import attack_examples
from robustjax.evaluation.records import read_records, summarise
from tests.attacks.tiny import ATTACK, CONFIG, INSERT, OVERWRITE, TEXTS, make_examples, make_victim


@pytest.fixture(scope="module")
def victim(tiny_tokenizer):
    return make_victim(tiny_tokenizer, width=24)  # as in test_evaluate: the same programs


def plain(example):
    return {"text": example.content[0], "label": example.label}


def row(example):
    return {
        "instructions": example.instructions,
        "content": list(example.content),
        "answer_prompt": example.answer_prompt,
        "clf_label": example.label,
        "proxy_clf_label": example.target_label,
        "gen_target": example.gen_target,
        "proxy_gen_target": example.proxy_gen_target,
        "text": example.text,
    }


def test_every_form_of_an_example_is_attacked_alike(victim):
    examples = make_examples(victim, TEXTS[:3], first_id=0)
    expected, _ = attack_examples(victim, examples, INSERT, ATTACK, seed=5, config=CONFIG)

    results = [
        run_attack(victim, examples, ATTACK, seed=5, config=CONFIG),
        run_attack(victim, [row(e) for e in examples], ATTACK, 5, config=CONFIG),
        run_attack(
            victim,
            [plain(e) for e in examples],
            ATTACK,
            seed=5,
            instructions="Is it spam?\n\n",
            config=CONFIG,
        ),
    ]

    for result in results:
        assert isinstance(result, AttackResult)
        assert result.records == expected
        assert result.summary == summarise(expected)
        assert result.success_rate == sum(r.success for r in expected) / len(expected)
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.success_rate = 1.0


def test_a_language_model_is_given_the_texts_it_should_go_on_with(tiny_tokenizer):
    model = make_victim(tiny_tokenizer, head="lm")
    examples = [
        dataclasses.replace(e, label=0, target_label=1, gen_target="", proxy_gen_target=" yes")
        for e in make_examples(model, TEXTS[:2], first_id=0)
    ]
    expected, _ = attack_examples(model, examples, INSERT, ATTACK, seed=5, config=CONFIG)
    mappings = [{"text": e.content[0], "target": " yes"} for e in examples]

    for given in (mappings, [row(e) for e in examples], examples):
        result = run_attack(model, given, ATTACK, 5, instructions="Is it spam?\n\n", config=CONFIG)
        assert result.records == expected
        assert all(record.target_logprobs for record in result.records)
    with pytest.raises(UserError, match=r"examples\[0\]: has no target: the text that"):
        run_attack(model, [{"text": "a", "label": 0}], ATTACK)
    with pytest.raises(UserError, match=r"examples\[0\]: field 'proxy_gen_target' is 3"):
        run_attack(model, [{"text": "a", "target": 3}], ATTACK)


def test_asking_a_language_model_about_clean_texts_is_counted(tiny_tokenizer):
    model = make_victim(tiny_tokenizer, head="lm")
    examples = [{"text": "It rains", "target": " yes"}]
    (record,) = run_attack(model, examples, dataclasses.replace(ATTACK, num_iterations=1)).records
    ids = model.tokenizer.encode(["It rains" + ANSWER_PROMPT, " yes"])
    tokens = sum(len(one) for one in ids)
    assert record.clean_flops_algorithmic == 2 * model.num_params * tokens
    assert 0 < record.clean_flops_executed


def test_records_come_in_the_order_of_the_examples(victim):
    examples = make_examples(victim, TEXTS[:4], first_id=0)
    wrong = dataclasses.replace(examples[3], label=1 - examples[3].label)
    wrong = dataclasses.replace(wrong, target_label=1 - wrong.label)

    result = run_attack(victim, [examples[2], wrong, examples[0]], ATTACK, config=CONFIG)

    assert [record.example_id for record in result.records] == [2, 3, 0]
    assert result.summary["num_correct_before"] == 2


def test_a_plain_text_gets_the_answer_prompt(victim):
    (example,) = make_examples(victim, TEXTS[:1])
    before = victim.logits([TEXTS[0] + ANSWER_PROMPT])[0]
    label = int(before.argmax())

    result = run_attack(victim, [{"text": TEXTS[0], "label": label}], ATTACK, config=CONFIG)

    (record,) = result.records
    assert record.clean_logits == before.tolist()
    assert record.attacked_text.startswith(TEXTS[0])
    assert record.attacked_text.endswith(ANSWER_PROMPT)


def test_an_empty_chunk_is_overwritten_by_default(victim):
    examples = make_examples(victim, TEXTS[:2], kinds=OVERWRITE, first_id=0)
    expected, _ = attack_examples(victim, examples, OVERWRITE, ATTACK, config=CONFIG)

    assert run_attack(victim, examples, ATTACK, config=CONFIG).records == expected


def test_another_chunk_can_be_chosen(victim):
    (example,) = make_examples(victim, TEXTS[:1])
    # The same text, cut otherwise: by default the attack would come last.
    example = dataclasses.replace(
        example,
        instructions=example.instructions + TEXTS[0],
        content=(example.answer_prompt,),
        answer_prompt="",
    )
    kinds = (ChunkKind.PERTURBABLE, ChunkKind.IMMUTABLE, ChunkKind.IMMUTABLE)

    result = run_attack(victim, [example], ATTACK, chunk_kinds=kinds, config=CONFIG)

    (record,) = result.records
    slot = record.iterations[-1].slot_text
    assert record.attacked_text == example.instructions + slot + ANSWER_PROMPT


def test_few_examples_make_a_small_batch(victim, monkeypatch):
    sizes = []
    original = module.attack_examples

    def watched(*arguments, config, **options):
        sizes.append(config.batch_size)
        return original(*arguments, config=config, **options)

    monkeypatch.setattr(module, "attack_examples", watched)
    run_attack(victim, make_examples(victim, TEXTS[:2], first_id=0), ATTACK)
    few = dataclasses.replace(ATTACK, num_iterations=1)
    run_attack(victim, make_examples(victim, TEXTS[:6] * 3, first_id=0), few)
    assert sizes == [2, 16]


def test_a_path_holds_the_records(victim, tmp_path):
    examples = make_examples(victim, TEXTS[:2], first_id=0)
    path = tmp_path / "attack_records.jsonl"

    result = run_attack(victim, examples, ATTACK, config=CONFIG, path=path)

    assert read_records(path) == result.records
    assert run_attack(victim, examples, ATTACK, config=CONFIG, path=path) == result


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "examples is empty"),
        ([{"text": "a"}], r"examples\[0\]: field 'instructions' is missing"),
        ([{"text": "a", "label": 0}, {"text": 3, "label": 0}], r"examples\[1\]: .*content\[0\]"),
        ([{"text": "a", "label": 2}], r"examples\[0\]: label 2 is none of the victim's 2 classes"),
        ([{"text": "a", "label": True}], r"examples\[0\]: field 'label' is True"),
    ],
)
def test_malformed_examples_are_named(victim, examples, message):
    with pytest.raises(UserError, match=message):
        run_attack(victim, examples, ATTACK)


def test_examples_of_different_shape_are_refused(victim):
    (one,) = make_examples(victim, TEXTS[:1], first_id=0)
    (two,) = make_examples(victim, TEXTS[:1], kinds=OVERWRITE, first_id=1)

    with pytest.raises(UserError, match=r"examples\[1\]: has 2 content chunks"):
        run_attack(victim, [one, two], ATTACK)


@pytest.mark.parametrize("seed", [-1, 2**32, True])
def test_a_seed_out_of_range_is_refused(victim, seed):
    with pytest.raises(UserError, match="seed="):
        run_attack(victim, [{"text": "a", "label": 0}], ATTACK, seed)


def test_it_is_at_hand_in_the_package():
    assert robustjax.run_attack is run_attack
