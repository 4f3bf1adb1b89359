"""`robustjax advtrain`: what it leaves, what it refuses, and what goes on from it."""

import errno
import itertools
import shutil

import pytest

from robustjax import load_victim
from robustjax.analysis.load import load_study
from robustjax.attacks.random_token import RandomToken
from robustjax.evaluation import records
from robustjax.evaluation.records import read_records
from robustjax.models.checksum import folder_sha256
from robustjax.runtime import checkpoint
from robustjax.runtime.runlog import MetricsLog, read_metrics
from tests.commands.conftest import contents, read
from tests.commands.short import ADVTRAIN, ATTACK, FINETUNE, GCG, HARDENING, ROUNDS, TASK, TRAINING
from tests.models.folders import make_hugging_face

NANO = f"{ADVTRAIN}:point=nano-27k,task=word_length"


@pytest.fixture
def hardened(run, trained, folders):
    """The workdir of a hardening; each process makes it once."""
    workdir = folders / "hardened"
    if not (workdir / "DONE").exists():
        given = f"--config.model.path={trained}"
        status, out, err = run("advtrain", NANO, *HARDENING, given, f"--workdir={workdir}")
        assert (status, out) == (0, f"{workdir}\n"), err
        assert "advtrain nano-27k gcg: 2/2 rounds" in err
        *_, last = err.splitlines()
        assert last.startswith("advtrain: clean accuracy 0.") and "gcg breaks" in last
    return workdir


def test_what_it_leaves(hardened, trained):
    summary = read(hardened / "summary.json")
    assert (summary["kind"], summary["trained_on"], summary["num_rounds"]) == ("advtrain", "gcg", 2)
    assert (summary["point"], summary["victim_seed"]) == ("nano-27k", 0)
    assert [row["attack_iterations"] for row in summary["rounds"]] == [1, 2]
    manifest = read(hardened / "manifest.json")
    assert manifest["model"]["weights"] == folder_sha256(trained / "model", is_ours=True)
    assert manifest["seeds"] == {"training": 0, "evaluation": 0}
    attacks = {}
    for number in (0, 1, 2):
        folder = hardened / "evaluation" / f"round-{number:03d}" / "gcg"
        assert (folder / "DONE").exists()
        attacks[number] = read(folder / "summary.json")
        assert len(read_records(folder / "attack_records.jsonl")) == attacks[number]["num_examples"]
    spent = [0, *(row["flops_total"] for row in summary["rounds"])]
    told = [(one["trained_on"], one["round"], one["defence_flops"]) for one in attacks.values()]
    assert told == [("none", 0, 0), ("gcg", 1, spent[1]), ("gcg", 2, spent[2])]
    assert {one["pretrain_flops"] for one in attacks.values()} == {
        read(trained / "summary.json")["flops_algorithmic"]
    }
    lines = read_metrics(hardened / "metrics.jsonl")
    rates = {
        line["round"]: line["gcg_success_rate"] for line in lines if "gcg_success_rate" in line
    }
    assert rates == {n: one["attack_success_rate"] for n, one in attacks.items()}
    assert sorted(path.name for path in (hardened / "rounds").iterdir()) == ["001", "002"]


def test_a_second_run_does_nothing(run, hardened, trained):
    before = contents(hardened)
    given = f"--config.model.path={trained}"
    status, out, err = run("advtrain", NANO, *HARDENING, given, f"--workdir={hardened}")
    assert (status, out) == (0, f"{hardened}\n")
    assert err == "advtrain: done already; nothing to do\n"
    # What changes no result may be another one.
    kept = "--config.advtrain.keep_checkpoints=5"
    assert run("advtrain", NANO, *HARDENING, given, kept, f"--workdir={hardened}")[0] == 0
    assert contents(hardened) == before


def test_a_report_shows_every_round(run, hardened, trained, tmp_path):
    status, _, err = run("report", trained, hardened, f"--out={tmp_path / 'report'}")
    assert status == 0, err
    rows = (tmp_path / "report" / "attack_runs.csv").read_text().splitlines()
    names = rows[0].split(",")
    rounds = sorted(int(row.split(",")[names.index("round")]) for row in rows[1:])
    assert rounds == [0, 1, 2]


def test_a_report_on_an_unfinished_training_shows_what_was_measured(hardened, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(hardened, unfinished)
    for name in ("DONE", "summary.json"):
        (unfinished / name).unlink()
    found = load_study([unfinished])
    assert sorted(attack.round for attack in found.attacks) == [0, 1, 2]
    assert (found.incomplete, found.trainings) == ((".",), ())


@pytest.mark.parametrize("round_folder", ["", "rounds/001", "rounds/002/model"])
def test_what_it_leaves_can_be_attacked_and_exported(run, hardened, tmp_path, round_folder):
    number = 1 if "001" in round_folder else 2  # the last one, unless it is said which
    given = f"--config.model.path={hardened / round_folder}"
    arguments = f"{ATTACK}:task=word_length", *GCG, given, f"--workdir={tmp_path / 'attack'}"
    status, _, err = run("attack", *arguments)
    assert status == 0, err
    summary = read(tmp_path / "attack" / "summary.json")
    assert (summary["trained_on"], summary["round"]) == ("gcg", number)
    spent = read(hardened / "summary.json")["rounds"][number - 1]["flops_total"]
    assert summary["defence_flops"] == spent

    exported = tmp_path / "exported"
    status, _, err = run("convert", f"--from={hardened / round_folder}", f"--to={exported}")
    assert status == 0, err
    texts = ["some words", "and more of them"]
    logits = load_victim(hardened / "rounds" / f"{number:03d}").logits(texts)
    assert (load_victim(exported, num_classes=2).logits(texts) == logits).all()


def test_on_embeddings(run, trained, tmp_path):
    config = f"{ADVTRAIN}:point=nano-27k,task=word_length,attack=embedding"
    given = f"--config.model.path={trained}"
    flags = *ROUNDS, "--config.advtrain.embedding.num_steps=2", given, f"--workdir={tmp_path}"
    status, _, err = run("advtrain", config, *flags)
    assert status == 0, err
    summary = read(tmp_path / "summary.json")
    assert (summary["trained_on"], len(summary["rounds"])) == ("embedding", 2)
    told = read(tmp_path / "evaluation" / "round-002" / "gcg" / "summary.json")
    assert told["trained_on"] == "embedding"
    assert told["defence_flops"] == summary["rounds"][1]["flops_total"] > 0


def test_a_mixture(run, trained, tmp_path):
    config = f"{ADVTRAIN}:point=nano-27k,task=word_length,attack=gcg+random_token"
    given = f"--config.model.path={trained}"
    status, _, err = run("advtrain", config, *HARDENING, given, f"--workdir={tmp_path}")
    assert status == 0, err
    summary = read(tmp_path / "summary.json")
    assert summary["trained_on"] == "gcg+random_token"
    words = read_records(
        tmp_path / "rounds" / "002" / "attacks" / "random_token" / "attack_records.jsonl"
    )
    assert {record.attack for record in words} == {RandomToken.name} and len(words) == 2


@pytest.mark.slow
def test_against_beast_with_a_language_model_of_the_family(run, refused, trained, tmp_path):
    """Which, as a companion of a held-out attack as well, must be a language model."""
    lm, training = tmp_path / "lm", "--config.objective=lm"
    given = f"{FINETUNE}:point=nano-27k,task=word_length", *TRAINING, training
    status, _, err = run("finetune", *given, f"--workdir={lm}")
    assert status == 0, err
    beast = f"{ADVTRAIN}:point=nano-27k,task=word_length,attack=beast"
    flags = *ROUNDS, "--config.advtrain.examples_per_round=4", f"--config.model.path={trained}"
    name = "--config.advtrain.attacks.beast.attack"
    flags = *flags, f"{name}.beam_width=2", f"{name}.branch_factor=2"
    line = refused("advtrain", beast, *flags, f"--config.companion.path={trained}")
    assert f"config.companion.path: {trained} has the head 'classifier'; give a model with" in line
    line = refused("advtrain", beast, *flags)
    assert "config.companion.path is empty, but beast samples tokens from a language model" in line
    companion, workdir = f"--config.companion.path={lm}", tmp_path / "w"
    status, _, err = run("advtrain", beast, *flags, companion, f"--workdir={workdir}")
    assert status == 0, err
    (row, *_) = read(workdir / "summary.json")["rounds"]
    assert row["attacks"]["beast"]["num_attacked"] == 4
    assert read(workdir / "stage.json")["config"]["companion"]["head"] == "lm"


@pytest.mark.parametrize("owner", ["arrays", "records", "metrics"])
def test_a_full_disk_loses_nothing(run, hardened, trained, tmp_path, monkeypatch, owner):
    """While it saves the end of round 1, the attack of round 2, or a step."""
    full = OSError(errno.ENOSPC, "No space left on device")
    place, name, count = {
        "arrays": (checkpoint, "fingerprints", 4),  # two of models, two of checkpoints
        "records": (records, "append_records", 3),
        "metrics": (MetricsLog, "write", 2),
    }[owner]
    original, calls = getattr(place, name), itertools.count(1)

    def fail(*arguments):
        if next(calls) == count:
            raise full
        return original(*arguments)

    given, workdir = f"--config.model.path={trained}", f"--workdir={tmp_path}"
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        status, out, err = run("advtrain", NANO, *HARDENING, given, workdir)
    assert (status, out) == (2, "") and "Traceback" not in err
    line = "robustjax advtrain: No space left on device; make room, and the same command goes on"
    assert err.splitlines()[-1] == line
    status, _, err = run("advtrain", NANO, *HARDENING, given, workdir)
    assert status == 0, err
    for name in ("metrics.jsonl", "rounds/002/attacks/gcg/attack_records.jsonl"):
        assert (tmp_path / name).read_bytes() == (hardened / name).read_bytes()


def test_a_model_that_was_hardened_is_refused(refused, hardened):
    given = f"--config.model.path={hardened}"
    line = refused("advtrain", NANO, *HARDENING, given)
    assert "was hardened already (gcg, 2 rounds), and compute would be counted from anew" in line


def test_a_workdir_of_another_config_is_refused(refused, hardened, trained):
    before, given = contents(hardened), f"--config.model.path={trained}"
    for override, message in {
        "--config.seed=1": "seed: 0 there, 1 here",
        "--config.advtrain.num_rounds=3": "advtrain.num_rounds: 2 there, 3 here",
        "--config.advtrain.pool.decay=0.1": "advtrain.pool.decay: 0.005 there, 0.1 here",
        "--config.evaluation.every=2": "evaluation.every: 1 there, 2 here",
    }.items():
        line = refused("advtrain", NANO, *HARDENING, given, override, workdir=hardened)
        assert "workdir of another config: " in line and message in line
    assert contents(hardened) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([ADVTRAIN], "config.model.point and config.model.path are both empty"),
        ([f"{ADVTRAIN}:attack=gcgg"], "name='gcgg' is no attack; known: gcg"),
        (["--config.advtrain.examples_per_round=49"], "config.advtrain: examples_per_round=49 is"),
        (["--config.evaluation.num_examples=65"], "config.evaluation.num_examples=65 is more"),
        (["--config.evaluation.every=0"], "config.evaluation: every=0 must be at least 1"),
        (
            ["--config.advtrain.attacks.gcg.schedule.rate=1.0"],
            "schedule: start=1, end=2 and rate=1.0 are all given; leave one of them out",
        ),
        (["--config.seed=-1"], "config: seed: -1 is no seed"),
        (["--config.companion.path=x"], "config.companion is set, but gcg asks no second model"),
    ],
    ids=lambda value: value[-1].split("/")[-1] if isinstance(value, list) else "",
)
def test_mistakes(refused, trained, arguments, message):
    if arguments[0].startswith("--config."):
        arguments = [NANO, *HARDENING, f"--config.model.path={trained}", *arguments]
    assert message in refused("advtrain", *arguments)


@pytest.mark.parametrize("part", ["advtrain.train", "advtrain.search", "evaluation.search"])
def test_widths_that_do_not_reach_the_context_are_refused(refused, trained, part):
    sizes = "--config.advtrain.examples_per_round=4", "--config.evaluation.num_examples=4"
    given, edges = f"--config.model.path={trained}", f"--config.{part}.edges=(64,)"
    line = refused("advtrain", NANO, *TASK, *sizes, given, edges)
    assert f"config.{part}.edges=(64,) end below the model's context of 1024" in line


def test_a_base_model_is_refused(refused, tmp_path, tiny_tokenizer):
    base = make_hugging_face(tmp_path / "base", tiny_tokenizer, head="lm", context=128)
    given = f"--config.model.path={base}"
    line = refused("advtrain", f"{ADVTRAIN}:task=word_length", *HARDENING, given)
    assert "has no classifier head, and a fresh one answers at random; fine-tune the model" in line
