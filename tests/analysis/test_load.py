"""Loading: what counts as a stage, what is refused, and that records win over summaries."""

import json
import shutil

import pytest

from robustjax.analysis.load import load_study
from robustjax.errors import UserError
from robustjax.evaluation.pretraining import pretrain_flops
from tests.analysis.conftest import Plan, write_study

SMALL = {"sizes": {"nano-28k": 28_320, "nano-900k": 913_664}, "num_rounds": 2, "num_examples": 8}
TINY = {"sizes": {"nano-28k": 28_320}, "num_rounds": 1, "num_examples": 4}
ATTACK = "attack/nano-28k-s0/gcg-r1/gcg"


def edit_summary(folder, **changes):
    file = folder / "summary.json"
    summary = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in summary.items() if value != "drop"}))
    return file


def test_a_whole_study(shared_study):
    loaded = load_study([shared_study(**SMALL)])
    assert len(loaded.finetunes) == 2
    assert [len(stage.rounds) for stage in loaded.trainings] == [2] * 4
    assert len(loaded.attacks) == 2 * 2 * (1 + 2 * 2)
    assert loaded.incomplete == ()
    assert loaded.provenance["versions.jax"] == ("0.10.2",)
    assert "started" not in loaded.provenance
    points = [run.victim.point for run in loaded.attacks]
    assert points == sorted(points)


def test_a_single_attack_is_its_own_workdir(lone_attack):
    (run,) = load_study([lone_attack()]).attacks
    assert (run.source, run.attack, run.trained_on, run.round) == (".", "gcg", "none", 0)
    # 2 N T FLOPs for each of 100 candidates, per attacked example and iteration.
    assert run.flops_per_example == 2 * 28_320 * 90 * 100
    assert run.flops_per_iteration == run.flops_per_example * run.num_attacked


def test_place_order_and_overlap_of_the_folders_do_not_matter(study, tmp_path):
    first, second = study("a", **TINY), study("b", **TINY, task="imdb")
    moved = tmp_path / "elsewhere" / "c"
    shutil.copytree(first, moved)
    assert load_study([first]) == load_study([moved])
    assert load_study([first, second]) == load_study([second, first])
    overlapping = load_study([first, first / "attack", first / ATTACK])
    assert [run.metrics for run in overlapping.attacks] == [
        run.metrics for run in load_study([first]).attacks
    ]


def test_stages_without_done_are_named_and_not_used(study):
    root = study(**SMALL)
    (root / ATTACK / "DONE").unlink()  # finished but for the marker
    killed = root / "attack/nano-28k-s0/gcg-r2/gcg"  # killed while attacking
    (killed / "DONE").unlink()
    (killed / "summary.json").unlink()
    begun = root / "advtrain/nano-900k-s0/gcg"  # killed in its first round
    shutil.rmtree(begun)
    (begun / "round-1").mkdir(parents=True)
    shutil.copy(root / ATTACK / "attack_records.jsonl", begun / "round-1")
    torn = root / "finetune/nano-28k-s0"
    (torn / "DONE").unlink()
    (torn / "summary.json").write_text('{"kind": "fine')
    loaded = load_study([root])
    assert loaded.incomplete == (
        "advtrain/nano-900k-s0/gcg",
        "attack/nano-28k-s0/gcg-r1/gcg",
        "attack/nano-28k-s0/gcg-r2/gcg",
        "finetune/nano-28k-s0",
    )
    assert len(loaded.attacks) == 20 - 2
    assert len(loaded.trainings) == 3
    assert len(loaded.finetunes) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attack_success_rate", 0.123),
        ("num_attacked", 3),
        ("asr_interval", [0.0, None]),
        ("asr_at", {"0": 0.0}),
        ("accuracy_before", None),
        ("iterations", 11),
        ("flops_algorithmic", 1),
    ],
)
def test_a_summary_that_contradicts_its_records_is_an_error(lone_attack, field, value):
    folder = lone_attack()
    file = edit_summary(folder, **{field: value})
    with pytest.raises(UserError, match=f"{field} is .* but the records beside it give") as error:
        load_study([folder])
    assert str(file) in str(error.value)


def test_numbers_come_from_the_records_not_from_the_summary(lone_attack):
    folder = lone_attack()
    expected = load_study([folder]).attacks[0].metrics
    bare = dict.fromkeys([*expected], "drop")
    edit_summary(folder, **bare)
    assert load_study([folder]).attacks[0].metrics == expected


def test_the_clean_training_that_two_studies_share_counts_once(tmp_path):
    for attack in ("gcg", "random_token"):
        write_study(tmp_path / attack, Plan(attacks=(attack,), defences=(attack,), **SMALL))
    loaded = load_study([tmp_path / "gcg", tmp_path / "random_token"])
    assert (len(loaded.finetunes), len(loaded.trainings)) == (2, 4)
    edit_summary(tmp_path / "gcg" / "finetune" / "nano-28k-s0", flops_algorithmic=10**9 + 1)
    with pytest.raises(UserError, match="the same run is in .*gcg.* and .*random_token"):
        load_study([tmp_path / "gcg", tmp_path / "random_token"])


def test_the_same_run_twice_is_an_error_that_names_both(lone_attack):
    one, two = lone_attack("one"), lone_attack("two")
    with pytest.raises(UserError, match="the same run is in .*one and .*two"):
        load_study([one, two])


def test_another_position_is_another_attack(lone_attack):
    loaded = load_study([lone_attack("one"), lone_attack("two", position=0.9)])
    assert [run.attack for run in loaded.attacks] == ["gcg", "gcg@0.9"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"point": "drop"}, "the field point is missing"),
        ({"num_params": "many"}, "num_params must be an integer"),
        ({"victim_seed": True}, "victim_seed must be an integer"),
        ({"round": 2}, "trained_on='none' does not go with round=2"),
        ({"trained_on": "gcg"}, "trained_on='gcg' does not go with round=0"),
        ({"kind": "surprise"}, "no summary.json with a known kind"),
    ],
)
def test_a_damaged_summary_is_an_error_that_names_the_file(lone_attack, changes, message):
    folder = lone_attack()
    edit_summary(folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        load_study([folder])
    assert str(folder) in str(error.value)


def test_an_impossible_accuracy_is_an_error(study):
    root = study(**SMALL)
    edit_summary(root / "finetune/nano-28k-s0", validation_accuracy=1.5)
    with pytest.raises(UserError, match="validation_accuracy must lie in 0..1"):
        load_study([root])


def test_a_damaged_record_is_an_error_that_names_its_line(lone_attack):
    folder = lone_attack()
    with open(folder / "attack_records.jsonl", "a") as file:
        file.write('{"half a line')
    with pytest.raises(UserError, match="attack_records.jsonl, line 65"):
        load_study([folder])


def test_done_without_a_readable_summary_is_an_error(lone_attack):
    folder = lone_attack()
    (folder / "summary.json").write_text("{")
    with pytest.raises(UserError, match="summary.json: cannot be read"):
        load_study([folder])


def test_optional_facts_may_be_missing(lone_attack):
    (run,) = load_study([lone_attack(pretrain_flops=None, position=None)]).attacks
    assert run.attack == "gcg"
    assert run.pretrain_flops != run.pretrain_flops


@pytest.mark.parametrize("source", ["corrected", "released"])
def test_the_pretraining_of_a_published_model_is_looked_up(lone_attack, source):
    folder = lone_attack(point="qwen2.5-3b", pretrain_flops=5)
    (run,) = load_study([folder], source).attacks
    assert run.pretrain_flops == float(pretrain_flops("qwen2.5-3b", source))


def test_an_unreadable_manifest_is_mentioned(lone_attack):
    folder = lone_attack()
    (folder / "manifest.json").write_text("{")
    assert load_study([folder]).provenance == {"unreadable manifest.json": (".",)}


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load_study([tmp_path / "missing"])
    with pytest.raises(UserError, match="no finished stage"):
        load_study([tmp_path])
    (tmp_path / "finetune" / "nano-28k-s0").mkdir(parents=True)
    with pytest.raises(UserError, match="1 incomplete"):
        load_study([tmp_path])


def test_the_mean_cost_is_over_the_trainings_of_all_seeds(study):
    root = study(sizes={"nano-28k": 28_320}, num_examples=8, num_rounds=2, seeds=(0, 1))
    file = root / "advtrain/nano-28k-s1/gcg/summary.json"
    summary = json.loads(file.read_text())
    for entry in summary["rounds"]:
        entry["flops_total"] += 1000
    file.write_text(json.dumps(summary))
    runs = [run for run in load_study([root]).attacks if run.trained_on == "gcg"]
    assert {run.mean_defence_flops - run.defence_flops for run in runs} == {500}
