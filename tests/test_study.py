"""One small study from end to end: what it leaves, and what it does the second time."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from robustjax import load_victim
from robustjax.cli import main
from robustjax.data.tasks import TaskConfig, load_task
from robustjax.errors import UserError
from robustjax.evaluation import records
from robustjax.evaluation.flops import forward_flops
from robustjax.models import registry
from robustjax.settings import StudyConfig, build
from robustjax.study_plan import Planner
from tests import tiny_study

ROOT = Path(__file__).parents[1]
TINY = f"--config={ROOT / 'tests' / 'tiny_study.py'}"
WHO = "nano-27k-s0"
STAGES = (
    "tokenizer",
    f"finetune/{WHO}",
    f"attack/{WHO}/none-r0/gcg",
    f"attack/{WHO}/none-r0/random_token",
    f"advtrain/{WHO}/gcg",
    f"attack/{WHO}/gcg-r1/gcg",  # after a round before the last, the attack of the training alone
    f"attack/{WHO}/gcg-r2/gcg",
    f"attack/{WHO}/gcg-r2/random_token",
    "report",
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def study(workdir, capsys, monkeypatch):
    """study(arguments...) -> status, stdout and stderr of the command."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))

    def call(*arguments, workdir=workdir):
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        status = main(["study", TINY, f"--workdir={workdir}", *arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def finished(workdir, study):
    if not (workdir / "DONE").exists():
        assert study()[0] == 0
    return workdir


def read(path):
    return json.loads(path.read_text())


def test_it_runs_and_prints_the_report_last(study, workdir):
    status, out, err = study()
    assert status == 0
    assert out == f"{workdir / 'report' / 'index.html'}\n"
    assert (workdir / "report" / "index.html").stat().st_size > 10_000
    assert "study: 9/9 stages" in err.splitlines()[-1]
    assert "study 2/9 | finetune nano-27k: 6/6 steps" in err
    for stage in STAGES:
        assert (workdir / stage / "DONE").exists(), stage
    assert len(list(workdir.rglob("DONE"))) == len(STAGES) + 1


def test_a_second_run_does_nothing_and_says_so(study, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    status, out, err = study()
    assert (status, out) == (0, f"{finished / 'report' / 'index.html'}\n")
    assert err == "study: all 9 stages are done already; nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_summaries_follow_from_records(finished):
    trained = read(finished / "finetune" / WHO / "summary.json")
    rounds = read(finished / "advtrain" / WHO / "gcg" / "summary.json")["rounds"]
    for stage in STAGES:
        if not stage.startswith("attack/"):
            continue
        summary = read(finished / stage / "summary.json")
        found = records.read_records(finished / stage / "attack_records.jsonl")
        metrics = json.loads(records.canonical_json(records.summarise(found)))
        assert {name: summary[name] for name in metrics} == metrics
        _, _, victim, attack = stage.split("/")
        trained_on, number = victim.split("-r")
        assert (summary["attack"], summary["attack_config"]["name"]) == (attack, attack)
        assert (summary["trained_on"], summary["round"]) == (trained_on, int(number))
        assert summary["num_attacked"] in (6, 8) and summary["iterations"] in (2, 8)
        assert summary["pretrain_flops"] == trained["flops_algorithmic"]
        spent = rounds[int(number) - 1]["flops_total"] if int(number) else 0
        assert summary["defence_flops"] == spent
        assert summary["config_hash"] == read(finished / stage / "DONE")["config_hash"]
        assert summary["num_params"] == registry.scaling_point("nano-27k").classifier_params


def test_attacked_texts_are_scored_as_they_read(finished):
    """The saved victim, asked about the reported texts, answers what the records say."""
    hardened = finished / "advtrain" / WHO / "gcg" / "rounds"
    for victim_of, stage in (
        (finished / "finetune" / WHO, "none-r0/gcg"),
        (hardened / "001", "gcg-r1/gcg"),
        (hardened / "002", "gcg-r2/random_token"),
    ):
        victim = load_victim(victim_of)
        found = records.read_records(finished / "attack" / WHO / stage / "attack_records.jsonl")
        attacked = [record for record in found if record.attacked]
        logits = victim.logits([record.attacked_text for record in attacked])
        np.testing.assert_allclose(logits, [r.logits for r in attacked], atol=1e-4)
        for record, scores in zip(attacked, logits, strict=True):
            if abs(scores[0] - scores[1]) > 1e-3:
                assert record.success == (scores.argmax() != record.label)
            assert record.flops_algorithmic % forward_flops(victim.num_params, 1) == 0


def test_an_attack_that_asks_a_second_model(finished, tmp_path):
    """The rest of the study stands; only the attack that asks it is another stage."""
    workdir = tmp_path / "w"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "attack")
    values = tiny_study.get_config().to_dict()
    values["evaluation"]["attacks"]["gcg"] |= {"probe_size": 4, "probe_reduction": 4}
    task = load_task(build(TaskConfig, values["task"], "config.task"))

    def plan():
        config = build(StudyConfig, values, "config")
        return {one.name: one for one in Planner(config, task, workdir).plan()}

    with pytest.raises(UserError, match="attacks.gcg: gcg with probe sampling asks a smaller"):
        plan()
    values["evaluation"]["companion"] = str(tmp_path)
    with pytest.raises(
        UserError, match=f"evaluation.companion={tmp_path}: .*config.json cannot be read"
    ):
        plan()
    values["evaluation"]["companion"] = str(finished / "finetune" / WHO)
    planned = plan()
    assert planned[f"finetune/{WHO}"].stage.is_done()
    attack = planned[f"attack/{WHO}/none-r0/gcg"]
    assert len(attack.leaves["companion"]["weights"]) == 64
    assert "companion" not in planned[f"attack/{WHO}/none-r0/random_token"].leaves
    attack.run()
    assert read(attack.folder / "summary.json")["variant"] == "probe"


def test_attacked_models_have_a_layout_of_their_own(finished, tmp_path, monkeypatch):
    """The mesh changes no hash; number formats do, but only of what is attacked in them."""
    workdir = tmp_path / "w"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "attack")
    values = tiny_study.get_config().to_dict()
    task = load_task(build(TaskConfig, values["task"], "config.task"))

    def plan(**numerics):
        values["points"]["nano-27k"]["attack_numerics"] = numerics
        config = build(StudyConfig, values, "config")
        planned = Planner(config, task, workdir).plan()
        return {one.name: one for one in planned}

    values["attack_mesh"] = {"data": 2, "tensor": 2}
    hashes = {name: one.stage.config_hash for name, one in plan().items()}
    assert all(read(finished / name / "DONE")["config_hash"] == hashes[name] for name in hashes)
    planned = plan(param_dtype="bfloat16")
    same = {name for name, one in planned.items() if one.stage.config_hash == hashes[name]}
    assert same == {"tokenizer", f"finetune/{WHO}", f"advtrain/{WHO}/gcg"}

    seen = []
    monkeypatch.setattr(
        "robustjax.study_work.attack_into",
        lambda folder, victim, *rest, **settings: seen.append(victim),
    )
    for name in ("none-r0/gcg", "gcg-r1/gcg"):
        planned[f"attack/{WHO}/{name}"].execute(tmp_path)
    for victim in seen:
        assert dict(victim.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(victim.params)} == {"bfloat16"}
    assert len(seen) == 2


def test_the_manifest_says_what_was_run(finished):
    manifest = read(finished / "manifest.json")
    config = manifest["config"]
    assert config["evaluation"]["attacks"]["gcg"]["name"] == "gcg"
    assert (
        config["points"]["nano-27k"]["advtrain"]["gcg"]["attacks"]["gcg"]["attack"]["name"] == "gcg"
    )
    assert config["points"]["nano-27k"]["finetune"]["train"]["optimizer"]["name"] == "adafactor"
    assert manifest["seeds"] == {"evaluation": 0, "training_0": 0}
    assert manifest["data"]["dropped_too_long"] == {"train": 0, "validation": 0}
    assert manifest["config_hash"] == read(finished / "DONE")["config_hash"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.task.num_train=40", "task.num_train: 48 there, 40 here"),
        ("--config.task.seed=1", "task.seed: 0 there, 1 here"),
        (
            "--config.points.nano-27k.finetune.train.batch_size=4",
            "finetune.train.batch_size: 8 there, 4 here",
        ),
        ("--config.evaluation.attacks.gcg.num_iterations=3", "num_iterations: 2 there, 3 here"),
        ("--config.points.nano-27k.advtrain.gcg.pool.max_examples=23", "24 there, 23 here"),
        ("--config.evaluation.num_examples=7", "num_examples: 8 there, 7 here"),
        ("--config.seeds=(1,)", "s0/gcg: "),
        ("--config.seeds=(0,1)", "absent there"),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "unfinished"])
def test_a_workdir_of_another_config_is_refused(study, finished, override, message, is_finished):
    ends = [finished / name for name in ("DONE", "report/DONE", "report/stage.json")]
    contents = [path.read_bytes() for path in ends]
    if not is_finished:
        for path in ends:
            path.unlink()
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    status, out, err = study(override)
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    for path, content in zip(ends, contents, strict=True):
        path.write_bytes(content)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("robustjax study: workdir of another config: ") and message in line
    assert after == before


def test_what_does_not_define_the_result_may_change(study, finished):
    overrides = (
        "--config.mesh.data=2",
        "--config.points.nano-27k.finetune.checkpoint_every=1",
        "--config.task.too_long=drop",
        "--config.evaluation.min_accuracy=0.01",
    )
    assert study(*overrides)[2].endswith("nothing to do\n")
    assert study("--config.workers=2")[2].endswith("nothing to do\n")


def test_workers_do_not_share_an_accelerator(study, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    status, _, err = study("--config.workers=2")
    assert status == 2
    assert "workers=2: processes cannot share a tpu; set --config.workers=1" in err


def test_rounds_on_the_way_may_be_evaluated_on_fewer_examples(finished):
    numbers = {
        name: read(finished / "attack" / WHO / name / "gcg" / "summary.json")["num_attacked"]
        for name in ("none-r0", "gcg-r1", "gcg-r2")
    }
    assert numbers == {"none-r0": 8, "gcg-r1": 6, "gcg-r2": 8}


def test_a_model_that_does_not_learn_the_task_stops_the_study(study, finished):
    status, out, err = study("--config.evaluation.min_accuracy=1.0")
    assert (status, out) == (2, "")
    reached = read(finished / "finetune" / WHO / "summary.json")["validation_accuracy"]
    assert f"nano-27k reaches a clean accuracy of {reached:.3f} on word_length" in err
    assert "below evaluation.min_accuracy=1.0" in err


def test_dropped_examples_are_counted(study, tmp_path):
    """On the way the bar for accuracy stops the study, and lowering it lets it go on."""
    rows = [{"text": f"the text number {i}", "label": i % 2} for i in range(16)]
    long = {"text": " ".join(map(str, range(2000))), "label": 0}
    paths = {}
    for name, lines in (("train", [*rows, long]), ("validation", [*rows[:12], long, long])):
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [
        "--config.task.name=jsonl",
        "--config.task.too_long=drop",
        "--config.task.num_train=0",
        "--config.task.num_validation=0",
        f"--config.task.train_path={paths['train']}",
        f"--config.task.validation_path={paths['validation']}",
        "--config.evaluation.min_accuracy=1.0",
    ]
    workdir = tmp_path / "workdir"
    status, out, err = study(*arguments, workdir=workdir)
    assert status == 2 and "below evaluation.min_accuracy=1.0" in err
    lines = err.splitlines()
    assert lines[0] == (
        "study: dropped 1 (16) training and 2 (12, 13) validation examples of more than 1016 tokens"
    )
    manifest = read(workdir / "manifest.json")
    assert manifest["data"]["dropped_too_long"] == {"train": 1, "validation": 2}
    summary = read(workdir / "finetune" / WHO / "summary.json")
    assert (summary["num_train"], summary["num_validation"]) == (16, 12)
