"""Rules of success against the plain reading of whole texts."""

import dataclasses

import numpy as np
import pytest

from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import SearchConfig
from robustjax.data.chat import Turn
from robustjax.data.prompts import Example, split_at_slot
from robustjax.evaluation.evaluate import attack_examples
from robustjax.evaluation.generate import GenerationConfig, generate
from robustjax.evaluation.judges.verdict import UNPARSABLE, verdict_of
from robustjax.evaluation.success_rules import JudgedAnswer, WrongAnswer
from robustjax.models import victim as victims
from tests.attacks.tiny import CONFIG, INSERT, TEXTS, make_victim
from tests.models.tiny import CONFIGS

ATTACK = GCG(num_iterations=3, num_tokens=4, num_candidates=16, top_k=8, candidate_chunk=8)
GENERATION = GenerationConfig(max_new_tokens=4, batch_size=2)


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    config = dataclasses.replace(CONFIGS["qwen2"], vocab=512, context=128)
    return make_victim(tiny_tokenizer, head="lm", config=config)


@pytest.fixture(scope="module")
def examples(model):
    return make_examples(model)


def likeliest(model, text):
    """The likeliest token after each prefix of a text, by one plain pass."""
    (row,) = model.tokenizer.encode([text])
    ids = np.zeros((1, 96), np.int32)
    ids[0, : len(row)] = row
    mask = np.arange(96)[None] < len(row)
    return np.asarray(victims.apply(model.definition, model.params, ids, mask))[0].argmax(-1)


def goes_on(model, text, target):
    (row,), (goal,) = model.tokenizer.encode([text]), model.tokenizer.encode([target])
    said = row + goal
    ids = np.zeros((1, 96), np.int32)
    ids[0, : len(said)] = said
    mask = np.arange(96)[None] < len(said)
    scores = np.asarray(victims.apply(model.definition, model.params, ids, mask))[0]
    return scores.argmax(-1)[len(row) - 1 : len(said) - 1].tolist() == goal


def make_examples(model):
    """Three with the model's own next token for a right answer, three with another text."""
    known, unknown = [], []
    for text in (one[:length] for length in range(12, 24) for one in TEXTS):
        prompt = f"Say it.\n\n{text}:"
        (row,) = model.tokenizer.encode([prompt])
        token = int(likeliest(model, prompt)[len(row) - 1])
        (own,) = model.tokenizer.decode([[token]])
        if model.tokenizer.encode([own]) == [[token]]:
            known.append((text, own))
        else:
            unknown.append((text, " never so"))
    chosen = [pair for pairs in zip(known, unknown, strict=False) for pair in pairs][:6]
    assert len(chosen) == 6
    return [
        Example(number, "Say it.\n\n", (text,), ":", 0, 1, right, " yes")
        for number, (text, right) in enumerate(chosen)
    ]


def test_a_wrong_answer_is_one_that_the_right_tokens_do_not_follow(model, examples):
    rule = WrongAnswer(INSERT)
    answers = rule.answers(model, examples, CONFIG, 0)
    right = {one.example_id: goes_on(model, one.text, one.gen_target) for one in examples}
    assert {number: answer.correct for number, answer in answers.items()} == right
    assert list(right.values()) == [True, False] * 3
    found, _ = attack_examples(model, examples, INSERT, ATTACK, config=CONFIG, answers=answers)
    assert [record.attacked_text is not None for record in found].count(True) == sum(right.values())
    judged = rule.judged(model, examples, found, CONFIG)
    successes = []
    for record in judged:
        before, after = split_at_slot(examples[record.example_id], INSERT, 1.0)
        for step in record.iterations:
            text = before + step.slot_text + after
            target = examples[record.example_id].gen_target
            assert step.success == (not goes_on(model, text, target))
            successes.append(step.success)
        if record.iterations:
            assert record.success == record.iterations[-1].success
            assert record.attacked_text == text
    assert any(successes)
    assert any(not one.success for record in found for one in record.iterations), "nothing changed"
    assert rule.judged(model, examples, judged, CONFIG) == judged


def test_what_has_no_right_answer_is_a_failure(model, examples):
    empty = [dataclasses.replace(examples[0], gen_target="")]
    answers = WrongAnswer(INSERT).answers(model, empty, CONFIG, 0)
    assert not answers[0].correct and "go on with is empty" in answers[0].failure


@dataclasses.dataclass
class Listener:
    """A judge that remembers what it was asked."""

    says: object
    name = "listener"

    def __post_init__(self):
        self.cases = []

    def leaves(self):
        return {"name": self.name}

    def judge(self, cases):
        self.cases += cases
        return [self.says(case) for case in cases]


def test_a_judge_sees_the_users_turn_and_what_was_generated(model, examples):
    examples = examples[:3]
    judge = Listener(lambda case: verdict_of(case.prompt != case.clean_prompt))
    rule = JudgedAnswer(judge, GENERATION, turn=Turn("Say it.\n\n", ":", False, False))
    answers = rule.answers(model, examples, CONFIG, 0)
    assert all(answer.correct for answer in answers.values())
    found, _ = attack_examples(model, examples, INSERT, ATTACK, config=CONFIG, answers=answers)
    judged = rule.judged(model, examples, found, CONFIG)
    asked = [case.prompt for case in judge.cases]
    assert asked[:3] == [one.content[0] for one in examples]
    by_id = sorted(judged, key=lambda record: record.example_id)
    assert sorted(asked[3:]) == sorted(one.attacked_text[9:-1] for one in by_id)
    texts = [one.attacked_text for one in by_id]
    said = generate(model, texts, range(3), GENERATION)
    assert [one.judged.output for one in by_id] == [answer.text for answer in said]
    clean = generate(model, [one.text for one in examples], range(3), GENERATION)
    assert [one.clean_judged.output for one in by_id] == [answer.text for answer in clean]
    assert {one.judged.outcome for one in by_id} == {"success"}
    assert [record.iterations for record in judged] == [record.iterations for record in found]


def test_no_more_is_asked_than_wanted(model, examples):
    """Every other example holds; the others comply already, and are not attacked."""
    place = {one.text: one.example_id for one in examples}
    judge = Listener(lambda case: verdict_of(place[case.clean_prompt] % 2 == 1))
    rule = JudgedAnswer(judge, GENERATION)
    answers = rule.answers(model, examples, CONFIG, 3)
    assert len(judge.cases) == 5, "three, of which two held, and two more"
    found, _ = attack_examples(
        model, examples, INSERT, ATTACK, config=CONFIG, answers=answers, max_attacked=3
    )
    judged = rule.judged(model, examples, found, CONFIG)
    assert sorted((one.example_id, one.judged is not None) for one in judged) == [
        *((0, True), (1, False), (2, True), (3, False), (4, True))
    ]
    assert [one.clean_judged is not None for one in judged] == [True] * 5


def test_what_cannot_be_judged_is_not_attacked(model, examples):
    examples, unread = examples[:2], examples[0].text
    judge = Listener(lambda case: UNPARSABLE if case.clean_prompt == unread else verdict_of(False))
    rule = JudgedAnswer(judge, GENERATION)
    answers = rule.answers(model, examples, SearchConfig(batch_size=4, edges=(48, 96)), 0)
    assert "verdict on the answer to the clean text cannot be read" in answers[0].failure
    assert not answers[0].correct and answers[1].correct and answers[1].failure is None
