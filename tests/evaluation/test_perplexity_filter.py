"""The perplexity filter: scores against losses by hand, the threshold, what it writes."""

import json

import numpy as np
import pytest

from robustjax.data.prompts import ANSWER_PROMPT, Example
from robustjax.errors import UserError
from robustjax.evaluation.detection import (
    SCORES_FILE,
    detection_metrics,
    read_scores,
    window_score,
)
from robustjax.evaluation.perplexity import token_losses
from robustjax.evaluation.perplexity_filter import (
    PerplexityFilterConfig,
    prepare_filter,
    score_texts,
)
from tests.attacks.reference import WIDTH, whole_scores
from tests.attacks.tiny import TEXTS, make_victim
from tests.evaluation.test_records import make_record, wrong_before

CONFIG = PerplexityFilterConfig(window=4, proportion=0.25)


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return make_victim(tiny_tokenizer, head="lm")


def test_each_token_but_the_first_has_its_loss(model):
    rows = model.tokenizer.encode(list(TEXTS[:3]))
    found = token_losses(model, rows)
    for ids, losses in zip(rows, found, strict=True):
        row = np.pad(np.array([ids], np.int32), ((0, 0), (0, WIDTH - len(ids))))
        mask = np.arange(WIDTH)[None] < len(ids)
        scores = np.asarray(whole_scores(model.definition, model.params, row, mask)[0, : len(ids)])
        scores = scores.astype(np.float64)
        logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        expected = [-logs[place, token] for place, token in enumerate(ids[1:])]
        assert len(losses) == len(ids) - 1
        np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-4)


def test_the_threshold_leaves_a_share_of_clean_texts_flagged(model):
    found = prepare_filter(model, TEXTS, CONFIG)
    losses = token_losses(model, model.tokenizer.encode(list(TEXTS)))
    expected = [window_score(one, 4, "max") for one in losses]
    np.testing.assert_array_equal(found.prepared_on, expected)
    assert (found.prepared_on > found.threshold).mean() == 0.25
    few = prepare_filter(model, TEXTS, PerplexityFilterConfig(num_preparation_examples=3))
    assert len(few.prepared_on) == 3


def test_what_it_leaves_can_be_recomputed(model, tmp_path):
    flt = prepare_filter(model, TEXTS, CONFIG)
    examples = [
        Example(i, "", (text,), ANSWER_PROMPT, 0, 1, " A", " B") for i, text in enumerate(TEXTS[:4])
    ]
    texts = {0: TEXTS[0] + "zq#7", 1: TEXTS[1], 2: TEXTS[2] + "zq#7"}
    records = [make_record(i, (i != 1,), attacked_text=text) for i, text in texts.items()]
    records.append(wrong_before(3))
    found = flt.apply(examples, records, tmp_path)

    lines = [json.loads(line) for line in (tmp_path / SCORES_FILE).read_text().splitlines()]
    assert [line["example_id"] for line in lines] == [0, 1, 2, 3]
    clean = score_texts(model, [example.text for example in examples], CONFIG)
    assert [line["clean"] for line in lines] == clean.tolist()
    attacked = score_texts(model, list(texts.values()), CONFIG)
    assert [line["attacked"] for line in lines] == [*attacked.tolist(), None]
    again = detection_metrics(records, read_scores(tmp_path / SCORES_FILE), found["threshold"])
    assert {name: found[name] for name in again} == again
    assert (found["num_prepared_on"], found["window"]) == (len(TEXTS), 4)
    assert found["lowest_prepared"] <= found["threshold"] <= found["highest_prepared"]


def test_a_damaged_line_of_scores_is_named(tmp_path):
    path = tmp_path / SCORES_FILE
    path.write_text('{"attacked":1.0,"clean":2.0,"example_id":0}\n{"clean":2.0}\n')
    with pytest.raises(
        UserError, match=r"line 2: not a score: score lacks fields \['attacked', 'e"
    ):
        read_scores(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"proportion": 0.0}, "proportion=0.0 must lie between"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"num_preparation_examples": -1}, "num_preparation_examples=-1 must not be negative"),
    ],
)
def test_what_its_settings_refuse(fields, message):
    with pytest.raises(UserError, match=message):
        PerplexityFilterConfig(**fields)


def test_what_it_cannot_read(model, tiny_tokenizer):
    with pytest.raises(UserError, match="none of 1 training texts has between 2 and 512 tokens"):
        prepare_filter(model, ["long " * 600], CONFIG)
    with pytest.raises(UserError, match="a text has 1 tokens, and tiny reads 2 to 512"):
        score_texts(model, ["a"], CONFIG)
    with pytest.raises(UserError, match="is a classifier, which predicts no tokens"):
        prepare_filter(make_victim(tiny_tokenizer), TEXTS, CONFIG)
