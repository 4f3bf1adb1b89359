"""Records: exact round trips, strict reading, torn tails, and the summary."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax.errors import UserError
from robustjax.evaluation import records as rec
from robustjax.evaluation.records import AttackRecord, IterationRecord

NASTY_TEXTS = [
    'quote " and backslash \\',
    "line\nbreak\r\nand tab\t",
    "separators \u2028 \u2029 \x85 \x0b \x0c \x1c",
    "control \x00\x01\x1f\x7f",
    "caf\u00e9 \u4e2d\u6587 \U0001f600 e\u0301",
    "lone replacement \ufffd and lone surrogate \udc80",
    "",
]


def make_record(example_id=0, successes=(False, True), **changes):
    """An attacked example whose final text is that of its last iteration."""
    fields = {
        "example_id": example_id,
        "label": 1,
        "target_label": 0,
        "correct_before": True,
        "attacked_text": "text ! !",
        "success": bool(successes and successes[-1]),
        "logits": [0.25, -1.5],
        "clean_logits": [-2.0, 2.0],
        "iterations": [IterationRecord(0.1 * k, ok, "! !", 7) for k, ok in enumerate(successes)],
        "num_retokenised": 2,
        "position": 1.0,
        "seed": 3,
        "flops_algorithmic": 100,
        "flops_executed": 150,
        "failure": None,
        "target_logprobs": None,
        "clean_target_logprobs": [-0.5, -3.25],
    }
    return AttackRecord(**{**fields, **changes})


def wrong_before(example_id):
    return make_record(
        example_id, (), correct_before=False, attacked_text=None, logits=None, flops_algorithmic=0
    )


def failed(example_id):
    return make_record(example_id, (), attacked_text=None, logits=None, failure="too long")


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_text_round_trips_exactly(tmp_path, text):
    step = IterationRecord(0.5, True, text, 1)
    record = make_record(attacked_text=text, iterations=[step], success=True, failure=None)
    path = tmp_path / "r.jsonl"
    rec.write_records(path, [record, make_record(1, failure=None)])
    assert rec.read_records(path)[0] == record
    assert path.read_bytes().count(b"\n") == 2


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**24))
def test_values_round_trip_exactly(tmp_path_factory, text, loss, flops):
    step = IterationRecord(loss, False, text, 3)
    record = make_record(attacked_text=text, iterations=[step], success=False)
    record = dataclasses.replace(record, flops_algorithmic=flops, logits=[loss, -loss])
    path = tmp_path_factory.mktemp("r") / "r.jsonl"
    rec.write_records(path, [record])
    assert rec.read_records(path) == [record]


def test_numpy_values_are_written_as_numbers():
    value = {"b": np.bool_(True), "a": [np.float32(0.1), np.int64(5)], "c": np.float32([1.5, 2])}
    text = rec.canonical_json(value)
    assert text == '{"a":[0.10000000149011612,5],"b":true,"c":[1.5,2.0]}'
    assert rec.canonical_json({"x": np.float32([1, np.nan]), "y": (math.inf,)}) == (
        '{"x":[1.0,null],"y":[null]}'
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_in_python(tmp_path, value):
    path = tmp_path / "r.jsonl"
    rec.write_records(path, [make_record(logits=[value, 1.0])])
    assert json.loads(path.read_text())["logits"] == [None, 1.0]
    (back,) = rec.read_records(path)
    assert math.isnan(back.logits[0])
    assert back.logits[1] == 1.0


def test_file_bytes_are_deterministic_with_sorted_keys(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    rec.write_records(one, [make_record(0), make_record(1)])
    rec.append_records(two, [make_record(0)])
    rec.append_records(two, [make_record(1)])
    assert one.read_bytes() == two.read_bytes()
    keys = list(json.loads(one.read_text().splitlines()[0]))
    assert keys == sorted(keys)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "r.jsonl"
    rec.write_records(path, [make_record()])
    before = path.read_bytes()
    record = make_record()
    object.__setattr__(record, "label", object())
    with pytest.raises(TypeError, match="not JSON"):
        rec.write_records(path, [record])
    assert path.read_bytes() == before

    def disk_full(*_):
        raise OSError("no space left")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(os, "replace", disk_full)
        rec.write_records(path, [make_record(7)])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["r.jsonl"]


def damaged(record_changes=(), drop=(), raw=None):
    if raw is not None:
        return raw
    line = json.loads(rec.canonical_json({**vars(make_record()), "iterations": []}))
    line.update(record_changes)
    for key in drop:
        del line[key]
    return json.dumps(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (damaged(drop=["seed"]), r"lacks fields \['seed'\]"),
        (damaged({"colour": 1}), r"unknown fields \['colour'\]"),
        (damaged({"label": True}), "label must be an integer, not true"),
        (damaged({"label": 1.0}), "label must be an integer"),
        (damaged({"success": 1}), "success must be true or false"),
        (damaged({"attacked_text": 3}), "attacked_text must be a string"),
        (damaged({"clean_logits": None}), "clean_logits must be a list"),
        (damaged({"logits": ["a"]}), r"logits\[0\] must be a number"),
        (damaged({"iterations": [{"loss": 1}]}), r"iterations\[0\] lacks fields"),
        (damaged({"failure": "too long", "success": True}), "success=true needs"),
        (damaged(raw='{"loss": NaN}'), "NaN is not JSON"),
        (damaged(raw="[1]"), "must be an object"),
        (damaged(raw=""), "Expecting value"),
        (damaged(raw='{"a'), "Unterminated"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "attack_records.jsonl"
    rec.write_records(path, [make_record(5)])
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    for read in (rec.read_records, rec.read_complete_records):
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert f"{path}, line 2" in str(error.value)
        assert "\n" not in str(error.value)


def test_an_example_recorded_twice_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    rec.write_records(path, [make_record(5), make_record(5, seed=4), make_record(5)])
    with pytest.raises(UserError, match="line 3.*example_id 5 with seed 3 is on line 1"):
        rec.read_records(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read attack records"):
        rec.read_records(tmp_path / "none.jsonl")
    assert rec.read_complete_records(tmp_path / "none.jsonl") == []


def test_resuming_after_any_torn_tail(tmp_path):
    path = tmp_path / "r.jsonl"
    kept, lost = [make_record(0), make_record(1, attacked_text="\u4e2d\n")], make_record(2)
    rec.write_records(path, kept)
    whole = path.read_bytes()
    rec.append_records(path, [lost])
    full = path.read_bytes()
    for cut in range(len(whole) + 1, len(full), 7):
        path.write_bytes(full[:cut])
        with pytest.raises(UserError, match="middle of a line"):
            rec.append_records(path, [lost])
        assert path.read_bytes() == full[:cut]
        assert rec.read_complete_records(path) == kept
        assert path.read_bytes() == whole
        rec.append_records(path, [lost])
        assert path.read_bytes() == full
    assert rec.read_complete_records(path) == [*kept, lost]
    assert path.read_bytes() == full


def test_only_the_last_line_can_be_torn(tmp_path):
    path = tmp_path / "r.jsonl"
    rec.write_records(path, [make_record(0)])
    line = path.read_bytes()
    path.write_bytes(line[:-10] + b"\n" + line[:20])
    with pytest.raises(UserError, match="line 1"):
        rec.read_complete_records(path)
    assert path.read_bytes() == line[:-10] + b"\n" + line[:20]


def test_first_success_iteration_is_one_based():
    assert make_record(successes=(False, True, False)).first_success_iteration == 2
    assert make_record(successes=(True,)).first_success_iteration == 1
    assert make_record(successes=(False, False)).first_success_iteration is None


def test_summary_of_a_mixed_attack():
    records = [
        make_record(0, (False, True)),
        make_record(1, (True, False)),  # broken on the way, but not by the final text
        make_record(2, (False, False)),
        wrong_before(3),
        failed(4),
    ]
    summary = rec.summarise(records)
    counts = {key: summary[key] for key in summary if key.startswith("num_")}
    assert counts == {
        "num_examples": 5,
        "num_correct_before": 4,
        "num_attacked": 3,
        "num_failures": 1,
        "num_broken": 1,
        "num_retokenised": 10,
    }
    assert summary["accuracy_before"] == 4 / 5
    assert summary["accuracy_after"] == 2 / 5
    assert summary["attack_success_rate"] == 1 / 3
    assert summary["asr_interval"] == pytest.approx([0.061492, 0.792340], abs=1e-6)
    assert summary["asr_at"] == {"0": 0.0, "1": 1 / 3, "2": 1 / 3}
    assert summary["asr_first_success_at"] == {"0": 0.0, "1": 1 / 3, "2": 2 / 3}
    assert summary["iterations"] == 2
    assert (summary["flops_algorithmic"], summary["flops_executed"]) == (400, 750)


@pytest.mark.parametrize(
    ("variant", "word"),
    [
        ("", ""),
        ("momentum", ""),
        ("replacements+momentum+probe+bf16+untargeted+random_start", ""),
        ("keep_best", "_best"),
        ("stop_at_success", "_stopped"),
        ("stop_at_success+keep_best+momentum", "_best_stopped"),
    ],
)
def test_options_that_change_what_a_rate_is_change_its_name(variant, word):
    changes = {"attack": "gcg", "variant": variant}
    records = [make_record(0, (False, True), **changes), make_record(1, (False, False), **changes)]
    summary = rec.summarise(records)
    plain = rec.summarise([dataclasses.replace(one, variant="") for one in records])
    names = {
        "attack_success_rate": f"attack_success_rate{word}",
        "accuracy_after": f"accuracy_after{word}",
        "asr_interval": f"asr{word}_interval",
        "asr_at": f"asr{word}_at",
    }
    assert summary == {names.get(name, name): plain[name] for name in plain} | {"variant": variant}
    assert list(rec.rate_names(variant)) == [
        names[name] for name in ("attack_success_rate", "asr_interval", "asr_at", "accuracy_after")
    ]


@pytest.mark.parametrize("other", [{"variant": "momentum"}, {"attack": "beast"}])
def test_records_of_different_attacks_have_no_common_summary(other):
    records = [make_record(0, attack="gcg"), make_record(1, **{"attack": "gcg"} | other)]
    found = "beast, gcg" if "attack" in other else r"gcg, gcg\+momentum"
    with pytest.raises(UserError, match=f"records of different attacks: {found};"):
        rec.summarise(records)


def test_summary_survives_the_disk_and_ignores_order(tmp_path):
    records = [make_record(i, (i % 2 == 0, i % 3 == 0)) for i in range(7)] + [wrong_before(8)]
    path = tmp_path / "r.jsonl"
    rec.write_records(path, records)
    assert rec.summarise(rec.read_records(path)) == rec.summarise(records)
    assert rec.summarise(records[::-1]) == rec.summarise(records)


@pytest.mark.parametrize("records", [[], [wrong_before(0)], [failed(0)]])
def test_summary_without_attacked_examples_is_nan_and_null(records):
    summary = rec.summarise(records)
    assert math.isnan(summary["attack_success_rate"])
    assert summary["asr_at"] == {"0": 0.0}
    stored = json.loads(rec.canonical_json(summary))
    assert stored["attack_success_rate"] is None
    assert stored["asr_interval"] == [None, None]


def test_summary_rejects_ragged_histories():
    with pytest.raises(UserError, match=r"\[1, 2\] iterations"):
        rec.summarise([make_record(0, (True,)), make_record(1, (True, True))])
