"""A study with a transfer matrix, a sampler of its own and a perplexity filter."""

import csv
import json

import pytest

from robustjax.data.tasks import load_task
from robustjax.errors import UserError
from robustjax.evaluation.detection import TextScores, detection_metrics
from robustjax.evaluation.records import canonical_json, read_records
from robustjax.settings import StudyConfig, build
from robustjax.study import run_study
from robustjax.study_plan import Planner
from tests import tiny_study

WHO = "nano-27k-s0"
TRAIN = {
    "epochs": 1,
    "batch_size": 8,
    "microbatch_size": 8,
    "edges": tiny_study.EDGES,
    "optimizer": {"learning_rate": 1e-2},
}
SAMPLER = {"point": "nano-27k", "train": {"objective": "lm", "train": TRAIN}}
BEAST = {"name": "beast", "num_iterations": 2, "beam_width": 3, "branch_factor": 3}


def values(**evaluation):
    """The tiny study with one round, BEAST and GCG at two positions."""
    found = tiny_study.get_config("rounds=1").to_dict()
    attacks = {"gcg": found["evaluation"]["attacks"]["gcg"], "beast": dict(BEAST)}
    found["evaluation"] |= {
        "attacks": attacks,
        "transfer": {
            "places": {"attacks": ("gcg",), "positions": (1.0, 0.0), "num_examples": 4},
            "other": {"attacks": ("beast",), "trained_on": ("gcg",), "num_examples": 4},
        },
        "sampler": SAMPLER,
        "perplexity_filter": {"proportion": 0.25, "window": 4, "num_preparation_examples": 16},
    } | evaluation
    return found


def plan(workdir, **evaluation):
    config = build(StudyConfig, values(**evaluation), "config")
    return Planner(config, load_task(config.task), workdir).plan()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    run_study(build(StudyConfig, values(), "config"), folder)
    return folder


def read(path):
    return json.loads(path.read_text())


def test_the_stages_are_the_matrix(tmp_path):
    names = [stage.name for stage in plan(tmp_path)]
    assert names == [
        "tokenizer",
        "sampler",
        f"finetune/{WHO}",
        f"attack/{WHO}/none-r0/gcg",
        f"attack/{WHO}/none-r0/gcg@0",
        f"advtrain/{WHO}/gcg",
        f"attack/{WHO}/gcg-r1/gcg",
        f"attack/{WHO}/gcg-r1/gcg@0",
        f"attack/{WHO}/gcg-r1/beast",
        "report",
    ]


def test_what_asks_the_sampler_hangs_on_it(tmp_path):
    """Another sampler is another BEAST, and another filter everywhere; training is the same."""

    def hashes(**evaluation):
        return {stage.name: stage.stage.config_hash for stage in plan(tmp_path, **evaluation)}

    other = SAMPLER | {"seed": 1}
    plain, changed = hashes(perplexity_filter=None), hashes(perplexity_filter=None, sampler=other)
    different = {name for name in plain if plain[name] != changed[name]}
    assert different == {"sampler", f"attack/{WHO}/gcg-r1/beast", "report"}
    filtered, changed = hashes(), hashes(sampler=other)
    different = {name for name in filtered if filtered[name] != changed[name]}
    attacks = {name for name in filtered if name.startswith("attack/")}
    assert different == {"sampler", "report"} | attacks


def test_positions_are_attacked_and_reported(workdir):
    for attack, position in (("gcg", 1.0), ("gcg@0", 0.0)):
        folder = workdir / "attack" / WHO / "gcg-r1" / attack
        summary = read(folder / "summary.json")
        assert (summary["attack"], summary["position"]) == ("gcg", position)
        assert {record.position for record in read_records(folder / "attack_records.jsonl")} == {
            position
        }
    with open(workdir / "report" / "transfer_matrix.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["attack"] for row in rows} == {"gcg", "gcg@0", "beast"}
    assert {(row["trained_on"], row["round"]) for row in rows} == {("none", "0"), ("gcg", "1")}
    assert any((workdir / "report").glob("transfer_matrix-*.png"))
    with open(workdir / "report" / "attack_runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            found = read(workdir / row["source"] / "summary.json")["perplexity_filter"]
            for name in ("true_positive_rate", "attack_success_rate_unflagged"):
                assert float(row[f"filter_{name}"]) == pytest.approx(found[name])


def test_the_sampler_is_a_language_model_that_beast_asks(workdir):
    summary = read(workdir / "sampler" / "summary.json")
    assert summary["kind"] == "pretrain" and summary["validation_perplexity"] > 1
    summary = read(workdir / "attack" / WHO / "gcg-r1" / "beast" / "summary.json")
    assert summary["num_attacked"] == 4 and summary["iterations"] == 2


def test_detection_rates_follow_from_what_is_written(workdir):
    for folder in (workdir / "attack" / WHO).glob("*/*"):
        found = read(folder / "summary.json")["perplexity_filter"]
        lines = [json.loads(x) for x in (folder / "perplexity_scores.jsonl").open()]
        scores = {one["example_id"]: TextScores(one["clean"], one["attacked"]) for one in lines}
        records = read_records(folder / "attack_records.jsonl")
        again = json.loads(canonical_json(detection_metrics(records, scores, found["threshold"])))
        assert {name: found[name] for name in again} == again
        assert found["num_prepared_on"] == 16


def test_a_filter_needs_a_language_model(tmp_path):
    with pytest.raises(UserError, match="perplexity_filter asks a language model; set evaluation"):
        attacks = {"gcg": values()["evaluation"]["attacks"]["gcg"]}
        products = {"all": {}}
        plan(tmp_path, sampler=None, attacks=attacks, transfer=products)


def test_a_companion_and_a_sampler_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="companion='x' and sampler='nano-27k': attacks ask one"):
        plan(tmp_path, companion="x")
