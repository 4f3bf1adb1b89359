"""`robustjax finetune`: what it leaves, what it refuses, and that it goes on."""

import json

import pytest

from robustjax import load_victim
from robustjax.data.tasks import TaskConfig, load_task
from robustjax.evaluation.evaluate import accuracy
from robustjax.models.checksum import folder_sha256
from robustjax.training import finetune as module
from tests.commands.conftest import contents, read
from tests.commands.short import FINETUNE, TASK, TRAINING
from tests.models.folders import make_hugging_face

NANO = f"{FINETUNE}:point=nano-27k,task=word_length"


def test_what_it_leaves(trained):
    summary = read(trained / "summary.json")
    assert (summary["kind"], summary["point"], summary["task"]) == (
        "finetune",
        "nano-27k",
        "word_length",
    )
    assert (summary["num_train"], summary["steps"], summary["victim_seed"]) == (48, 6, 0)
    assert summary["started_from"] == "scratch"
    assert summary["config_hash"] == read(trained / "manifest.json")["config_hash"]
    assert (trained / "checkpoints").is_dir()
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    task = load_task(TaskConfig("word_length", num_train=48, num_validation=64))
    victim = load_victim(trained)
    assert (victim.name, victim.family) == ("nano-27k", "nano")
    assert accuracy(victim, task.validation) == summary["validation_accuracy"]


def test_a_second_run_does_nothing(run, trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    status, out, err = run("finetune", NANO, *TRAINING, f"--workdir={trained}")
    assert (status, out, err) == (0, f"{trained}\n", "finetune: done already; nothing to do\n")
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_interrupted_it_goes_on_to_the_same_result(run, trained, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    # `trained` may have run what another test process compiled otherwise. A workdir has its own
    # programs; here both runs take them from the cache, where they are by now.
    straight, interrupted_run = tmp_path / "straight", tmp_path / "interrupted"
    assert run("finetune", NANO, *TRAINING, f"--workdir={straight}")[0] == 0
    command = "finetune", NANO, *TRAINING, f"--workdir={interrupted_run}"
    with monkeypatch.context() as patch:
        # After the last step, before its checkpoint.
        interrupted = module._QUALITIES["classifier"]._replace(measure=interrupt)
        patch.setitem(module._QUALITIES, "classifier", interrupted)
        assert run(*command)[0] == 130
    assert not (interrupted_run / "DONE").exists()
    status, _, err = run(*command)
    assert status == 0
    assert "1/6 steps" not in err, "it started from the beginning"
    for name in ("summary.json", "metrics.jsonl", "manifest.json", "DONE"):
        assert (interrupted_run / name).read_bytes() == (straight / name).read_bytes(), name
    ours = [folder_sha256(one / "model", is_ours=True) for one in (interrupted_run, straight)]
    assert ours[0] == ours[1]


def test_a_workdir_of_another_config_is_refused(refused, trained):
    before = contents(trained)
    for override, message in {
        "--config.seed=1": "seed: 0 there, 1 here",
        "--config.finetune.train.epochs=2": "finetune.train.epochs: 1 there, 2 here",
        "--config.task.seed=1": "task.seed: 0 there, 1 here",
    }.items():
        line = refused("finetune", NANO, *TRAINING, override, workdir=trained)
        assert line.startswith("robustjax finetune: workdir of another config: ")
        assert message in line
    assert contents(trained) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([FINETUNE], "config.model.point and config.model.path are both empty"),
        ([f"{FINETUNE}:point=nano-9k"], "config.model: scaling point 'nano-9k' is unknown"),
        ([NANO, "--config.finetune.num_train=49", *TASK], "config.finetune: num_train=49 is more"),
        ([NANO, "--config.seed=-1"], "config: seed: -1 is no seed"),
        ([NANO, "--config.mesh.data=5"], "mesh: data 5 x fsdp 1"),
        (
            [NANO, "--config.finetune.train.edges=(64,)"],
            "config.finetune.train.edges=(64,) end below",
        ),
        ([NANO, "--config.model.path=/nowhere/at/all"], "config.model.path: model '/nowhere"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes(refused, arguments, message):
    assert message in refused("finetune", *arguments)


def test_it_goes_on_from_a_model_that_is_there(run, refused, trained, tmp_path, tiny_tokenizer):
    base = make_hugging_face(tmp_path / "base", tiny_tokenizer, head="lm", context=128)
    task = f"{FINETUNE}:task=word_length"
    given = f"--config.model.path={base}"
    status, _, err = run("finetune", task, *TRAINING, given, f"--workdir={tmp_path / 'w'}")
    assert status == 0, err
    summary = read(tmp_path / "w" / "summary.json")
    assert (summary["point"], summary["model_family"]) == ("base", "gpt_neox")
    assert summary["started_from"] == folder_sha256(base, is_ours=False)
    again = f"--config.model.path={trained}", "--config.model.point=nano-80k"
    assert "nano-80k has 2 layers of width 48" in refused("finetune", task, *TRAINING, *again)
