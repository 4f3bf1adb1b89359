"""A stage is done once, by its own configuration, and survives a kill anywhere."""

import json

import pytest

from robustjax.errors import UserError
from robustjax.runtime.stages import Stage, first_difference

TEN = {"attack": {"name": "gcg", "num_iterations": 10}, "seed": 0}
TWENTY = {"attack": {"name": "gcg", "num_iterations": 20}, "seed": 0}


def test_a_stage_is_done_when_it_has_finished(tmp_path):
    stage = Stage(tmp_path / "finetune", "aaaa", TEN)
    assert not stage.is_done()
    stage.start()
    assert not stage.is_done()
    stage.start()  # goes on after a kill
    stage.finish()
    assert Stage(tmp_path / "finetune", "aaaa", TEN).is_done()


def test_the_claim_is_written_first_and_holds_the_config(tmp_path):
    Stage(tmp_path, "aaaa", TEN).start()
    claim = json.loads((tmp_path / "stage.json").read_text())
    assert claim == {"config_hash": "aaaa", "config": TEN}
    assert not (tmp_path / "DONE").exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("question", ["is_done", "start"])
def test_another_config_is_refused_with_the_field(tmp_path, finished, question):
    first = Stage(tmp_path, "aaaa", TEN)
    first.start()
    if finished:
        first.finish()
    second = Stage(tmp_path, "bbbb", TWENTY)
    with pytest.raises(UserError) as caught:
        getattr(second, question)()
    assert str(caught.value) == (
        "workdir of another config: attack.num_iterations: 10 there, 20 here; "
        f"use another --workdir or delete {tmp_path}"
    )
    assert json.loads((tmp_path / "stage.json").read_text())["config_hash"] == "aaaa"


def test_a_done_marker_of_another_hash_is_refused_without_a_claim(tmp_path):
    Stage(tmp_path, "aaaa").finish()
    with pytest.raises(UserError, match="config hash aaaa there, bbbb here"):
        Stage(tmp_path, "bbbb", TEN).is_done()


def test_equal_leaves_under_another_schema_name_the_hashes(tmp_path):
    Stage(tmp_path, "aaaa", TEN).start()
    with pytest.raises(UserError, match="config hash aaaa there, bbbb here"):
        Stage(tmp_path, "bbbb", TEN).is_done()


def test_first_difference_names_the_field():
    assert first_difference(TEN, TEN) is None
    assert first_difference({"a": {"b": 1}}, {"a": {}}) == "a.b: 1 there, absent here"
    assert first_difference({}, {"z": None}) == "z: absent there, None here"
    assert first_difference({"a": 1}, {"a": 1.0}) == "a: 1 there, 1.0 here"
    assert first_difference({"b": 1, "a": 1}, {"b": 2, "a": 2}) == "a: 1 there, 2 here"
