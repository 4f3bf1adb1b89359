"""Verdicts in records: read strictly, written only where there are any, counted honestly."""

import dataclasses
import json
import math

import pytest

from robustjax.errors import UserError
from robustjax.evaluation import records
from robustjax.evaluation.judged import Judged, summarise
from robustjax.evaluation.metrics import wilson_interval
from robustjax.evaluation.records import AttackRecord, IterationRecord

YES = Judged("Sure", False, "success", 1.0, "j")
NO = Judged("No", True, "failure", 0.0, "j")
UNREAD = Judged("\u2026\ud800", False, "unparsable", None, "j")


def record(example_id, judged=None, clean_judged=None, **fields):
    values = {
        "example_id": example_id,
        "label": 0,
        "target_label": 1,
        "correct_before": judged is not None,
        "attacked_text": None if judged is None else "text",
        "success": False,
        "logits": None,
        "clean_logits": [],
        "iterations": [] if judged is None else [IterationRecord(1.0, False, "x", 1)],
        "num_retokenised": 0,
        "position": 1.0,
        "seed": 0,
        "flops_algorithmic": 0,
        "flops_executed": 0,
        "failure": None,
    }
    return AttackRecord(**values | fields, judged=judged, clean_judged=clean_judged)


def test_records_come_back_as_they_were(tmp_path):
    written = [record(0, YES, NO), record(1, UNREAD, NO), record(2, None, YES), record(3)]
    path = tmp_path / "records.jsonl"
    records.write_records(path, written)
    assert records.read_records(path) == written
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [("judged" in line, "clean_judged" in line) for line in lines] == [
        *((True, True), (True, True), (False, True), (False, False))
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "maybe"}, "record.judged.outcome must be one of success, failure, unparsable"),
        ({"score": "1"}, "record.judged.score must be a number or null"),
        ({"score": None}, "outcome='success' does not go with score=None"),
        ({"score": 1.5}, "score=1.5 must lie in 0..1"),
        ({"is_cut": 0}, "record.judged.is_cut must be true or false"),
        ({"more": 1}, "record.judged lacks fields [] and has unknown fields ['more']"),
    ],
)
def test_a_damaged_verdict_is_named(tmp_path, change, message):
    path = tmp_path / "records.jsonl"
    records.write_records(path, [record(0, YES, NO)])
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"judged": line["judged"] | change}) + "\n")
    with pytest.raises(UserError) as caught:
        records.read_records(path)
    assert message in str(caught.value)


def test_what_cannot_be_read_is_counted_and_no_success():
    found = records.summarise(
        [
            record(0, YES, NO),
            record(1, NO, NO),
            record(2, UNREAD, NO),
            record(3, YES, NO),
            record(4, None, YES),
            record(5, None, UNREAD, failure="cannot be read"),
        ]
    )
    assert found["judge"] == "j"
    assert (found["num_judged_before"], found["num_refused_before"]) == (6, 4)
    assert found["refusal_rate_before"] == 4 / 6 and found["num_unparsable_before"] == 1
    assert (found["num_judged"], found["num_judged_success"]) == (4, 2)
    assert (found["num_unparsable"], found["num_cut"]) == (1, 1)
    assert found["judged_success_rate"] == 0.5
    assert found["judged_success_interval"] == list(wilson_interval(2, 4))
    assert found["judged_mean_score"] == 2 / 3
    assert found["attack_success_rate"] == 0.0, "the search's own success is another matter"


def test_without_verdicts_there_are_none():
    assert summarise([], []) == {}
    assert not any("judge" in name for name in records.summarise([record(0)]))
    nobody = records.summarise([record(0, None, YES)])
    assert math.isnan(nobody["judged_success_rate"]) and nobody["num_judged"] == 0


def test_an_attacked_example_without_verdict_counts_as_no_success():
    found = records.summarise(
        [record(0, YES, NO), dataclasses.replace(record(1, YES), judged=None)]
    )
    assert (found["num_judged"], found["judged_success_rate"]) == (1, 0.5)


def test_several_judges_are_refused():
    other = dataclasses.replace(YES, judge="k")
    with pytest.raises(UserError, match="verdicts of several judges: j, k"):
        records.summarise([record(0, YES, NO), record(1, other, NO)])
