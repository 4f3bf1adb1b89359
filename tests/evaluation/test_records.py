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
from robustjax.evaluation import metrics
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
        "iterations": [
            IterationRecord(0.1 * k, ok, "! !", 7, [1.0, 0.0] if ok else [-0.5, 0.5])
            for k, ok in enumerate(successes)
        ],
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


def test_resuming_after_any_torn_tail(tmp_path, caplog):
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
        caplog.clear()
        assert rec.read_complete_records(path) == kept
        lost_bytes = f"line 3 is cut off after {cut - len(whole)} bytes; the 2 whole records"
        assert lost_bytes in caplog.text
        assert path.read_bytes() == whole
        rec.append_records(path, [lost])
        assert path.read_bytes() == full
    caplog.clear()
    assert rec.read_complete_records(path) == [*kept, lost]
    assert path.read_bytes() == full and not caplog.text


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


def history(example_id, successes):
    """An example of which the spec's worked checks know only when the victim is wrong."""
    return make_record(example_id, successes, label=1)


def test_the_worked_example_of_two_histories():
    """[ok, fail, fail] and [ok, ok, fail]: the rates, and when each decile is reached."""
    records = [history(0, (False, True, True)), history(1, (False, False, True))]
    summary = rec.summarise(records)
    assert summary["asr_at"] == {"0": 0, "1": 0, "2": 0.5, "3": 1}
    deciles = [f"{decile / 10:.1f}" for decile in range(11)]
    expected = dict(zip(deciles, [0, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3], strict=True))
    assert summary["iterations_for_success"] == expected
    assert summary["iterations_for_first_success"] == expected

    holds = rec.summarise([records[0], history(1, (False, False, False))])
    assert list(holds["iterations_for_success"].values()) == [0, 2, 2, 2, 2, 2] + [None] * 5


def test_the_worked_example_of_the_average_initial_breach():
    firsts = [2, 3, 3, 3]
    records = [history(i, [k >= first for k in (1, 2, 3)]) for i, first in enumerate(firsts)]
    breach = rec.summarise(records)["average_initial_breach"]
    assert breach["0.6"] == 2.5
    assert breach["0.8"] == pytest.approx(8 / 3)
    assert breach["0.0"] == 2

    never = rec.summarise([*records[:3], history(3, (False, False, False))])
    assert never["average_initial_breach"]["1.0"] == math.inf
    assert json.loads(rec.canonical_json(never))["average_initial_breach"]["1.0"] is None


def test_instantaneous_and_first_success_rates_differ_when_a_success_is_lost_again():
    summary = rec.summarise([history(0, (True, False)), history(1, (False, False))])
    assert summary["asr_at"] == {"0": 0, "1": 0.5, "2": 0}
    assert summary["asr_first_success_at"] == {"0": 0, "1": 0.5, "2": 0.5}
    assert summary["iterations_for_success"]["0.5"] == 1
    assert summary["attack_success_rate"] == 0
    assert summary["asr_first_success_interval"] == list(metrics.wilson_interval(1, 2))


def test_log_probabilities_after_each_iteration_by_hand():
    """Logits (a, b) of true class 1: ln p = -ln(1 + e^(a - b)); clean texts are iteration 0."""
    summary = rec.summarise([make_record(0, (False, True)), make_record(1, (True, True))])
    held, broken, clean = (-math.log1p(math.exp(d)) for d in (-1, 1, -4))
    assert summary["mean_log_prob_at"] == pytest.approx(
        {"0": clean, "1": (held + broken) / 2, "2": broken}
    )
    assert summary["mean_logit_at"] == pytest.approx({"0": 4, "1": 0, "2": -1})
    mean = (math.exp(held) + math.exp(broken)) / 2
    assert summary["log_mean_prob_at"] == pytest.approx(
        {"0": clean, "1": math.log(mean), "2": broken}
    )


def test_log_probabilities_of_three_classes():
    records = [
        make_record(
            0,
            (True,),
            label=2,
            clean_logits=[0.0, 0.0, 1.0],
            iterations=[IterationRecord(0.5, True, "!", 3, [0.0, 1.0, 0.0])],
        )
    ]
    summary = rec.summarise(records)
    total = 2 + math.e
    assert summary["mean_log_prob_at"] == pytest.approx(
        {"0": 1 - math.log(total), "1": -math.log(total)}
    )
    assert summary["mean_logit_at"]["1"] == pytest.approx(-math.log(1 + math.e))


def test_a_language_model_has_no_log_probabilities_of_classes():
    steps = [IterationRecord(0.5, True, "!", 3, None)]
    summary = rec.summarise([make_record(0, (True,), clean_logits=[], iterations=steps)])
    assert not any("log" in name for name in summary)


@given(
    st.integers(1, 5).flatmap(
        lambda k: st.lists(st.tuples(*[st.booleans()] * k), min_size=1, max_size=9)
    )
)
def test_rates_of_any_records_are_rates(successes):
    records = [history(i, one) for i, one in enumerate(successes)]
    summary = rec.summarise(records)
    at, first = (list(summary[name].values()) for name in ("asr_at", "asr_first_success_at"))
    assert all(0 <= rate <= 1 for rate in at + first)
    assert all(a <= b for a, b in zip(first, first[1:], strict=False))
    assert all(a <= b for a, b in zip(at, first, strict=True))
    for rate, interval in (
        (summary["attack_success_rate"], summary["asr_interval"]),
        (first[-1], summary["asr_first_success_interval"]),
        (summary["accuracy_before"], summary["accuracy_before_interval"]),
    ):
        assert 0 <= interval[0] <= rate <= interval[1] <= 1
    breach = list(summary["average_initial_breach"].values())
    assert all(a <= b for a, b in zip(breach, breach[1:], strict=False))
    reached = [k for k in summary["iterations_for_first_success"].values() if k is not None]
    assert reached == sorted(reached) and len(reached) == 1 + math.floor(first[-1] * 10 + 1e-9)
    assert all(value <= 0 for value in summary["mean_log_prob_at"].values())


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
    renamed = {
        "attack_success_rate": f"attack_success_rate{word}",
        "accuracy_after": f"accuracy_after{word}",
        "asr_interval": f"asr{word}_interval",
        "asr_at": f"asr{word}_at",
        "iterations_for_success": f"iterations_for_success{word}",
        "mean_log_prob_at": f"mean_log_prob{word}_at",
        "log_mean_prob_at": f"log_mean_prob{word}_at",
        "mean_logit_at": f"mean_logit{word}_at",
    }
    assert set(renamed) < set(plain)
    expected = {renamed.get(name, name): value for name, value in plain.items()}
    assert summary == expected | {"variant": variant}
    names = rec.rate_names(variant)
    assert [summary[name] for name in (names.rate, names.interval, names.at, names.accuracy)] == [
        plain[name] for name in ("attack_success_rate", "asr_interval", "asr_at", "accuracy_after")
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
