"""One program on any devices: layouts agree, runs go from one to another, a lost process is named.

On CPU devices with Gloo between processes; the small model makes the search itself short.
"""

import functools
import json
import re

import numpy as np
import pytest

from robustjax.data.tasks import TaskConfig, load_task
from robustjax.evaluation.records import read_records
from robustjax.models.loading import load_victim
from robustjax.runtime.interrupts import PREEMPTED_STATUS
from tests import processes
from tests.commands.short import ADVTRAIN, ATTACK, FINETUNE, HARDENING
from tests.killing import DIE_AT
from tests.processes import Layout

pytestmark = pytest.mark.slow

ALONE = Layout()
EIGHT = Layout(1, 8)
MIXED = Layout(1, 8, (2, 2, 2))
TWO_BY_TWO = Layout(2, 2)
FOUR_BY_ONE = Layout(4, 1)
ACROSS = Layout(2, 2, (1, 2, 2))
"""Each of the two processes has half of the weights, along `fsdp`, and half of the rows."""
UNSPLIT = Layout(2, 2, (1, 1, 4))
"""Both have all rows, and parts of every weight."""

STEPS = 20
TASK = ("--config.task.num_train=160", "--config.task.num_validation=32")
TRAIN = [
    "finetune",
    f"{FINETUNE}:point=nano-27k,task=word_length",
    *TASK,
    "--config.finetune.num_train=0",
    "--config.finetune.checkpoint_every=4",
    "--config.finetune.train.epochs=1",
    "--config.finetune.train.microbatch_size=4",
    "--config.finetune.train.edges=(64,1024)",
    "--config.finetune.train.optimizer.warmup_steps=0",
    "--config.finetune.train.optimizer.learning_rate=3e-3",
]
SEARCH = [
    "attack",
    f"{ATTACK}:point=nano-27k,task=word_length,attack=gcg",
    *TASK,
    "--config.num_examples=12",
    "--config.attack.num_iterations=3",
    "--config.attack.num_tokens=4",
    "--config.attack.num_candidates=16",
    "--config.attack.candidate_chunk=16",
    "--config.search.batch_size=8",
    "--config.search.edges=(64,1024)",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def run(folder):
    """run(arguments, layout, ...) -> how each process ended; compiled programs are shared."""
    return functools.partial(processes.run, cache=folder / "programs")


@pytest.fixture(scope="module")
def done(run):
    """done(arguments, layout, workdir) -> the workdir, of a command that ends well."""
    return functools.partial(run_to_its_end, run)


def run_to_its_end(run, arguments, layout, workdir, **options):
    """All processes end well, and only the primary one says anything."""
    ended = run([*arguments, f"--workdir={workdir}"], layout, **options)
    assert [one.status for one in ended] == [0] * layout.processes, ended
    first, *others = ended
    assert first.out == f"{workdir}\n"
    assert {one.out for one in others} <= {""}
    assert not any(arguments[0] in one.err for one in others)
    return workdir


@pytest.fixture(scope="module")
def model(done, folder):
    """A training on one device."""
    return done(TRAIN, ALONE, folder / "trained")


@pytest.fixture(scope="module")
def search(model):
    return [*SEARCH, f"--config.model.path={model}"]


@pytest.fixture(scope="module")
def alone(done, search, folder):
    """An attack on one device."""
    return done(search, ALONE, folder / "alone")


@pytest.fixture(scope="module")
def by_four(done, search, folder):
    """The same in four processes."""
    return done(search, FOUR_BY_ONE, folder / "by-four")


def records_of(workdir):
    return read_records(workdir / "attack_records.jsonl")


def results(workdir):
    """The bytes of what an attack leaves, but for when and where."""
    names = ("attack_records.jsonl", "summary.json", "stage.json", "DONE")
    return {name: (workdir / name).read_bytes() for name in names}


def assert_same_attack(workdir, reference, model):
    """Recorded slots have the recorded losses on one device, and choices are those made there."""
    victim = load_victim(model)
    found, expected = records_of(workdir), records_of(reference)
    assert [one.example_id for one in found] == [one.example_id for one in expected]
    assert any(one.iterations for one in found)
    for one, other in zip(found, expected, strict=True):
        assert (one.correct_before, one.flops_algorithmic > 0) == (
            other.correct_before,
            other.flops_algorithmic > 0,
        )
        np.testing.assert_allclose(one.clean_logits, other.clean_logits, rtol=0, atol=1e-4)
        if not one.iterations:
            continue
        before, after = one.attacked_text.rsplit(one.iterations[-1].slot_text, 1)
        texts = [before + iteration.slot_text + after for iteration in one.iterations]
        logits = victim.logits(texts)
        rows = np.arange(len(texts))
        rest = logits[:, 1 - one.target_label] - logits[:, one.target_label]
        replayed = np.log1p(np.exp(rest.astype(np.float64)))
        recorded = [iteration.loss for iteration in one.iterations]
        np.testing.assert_allclose(replayed, recorded, rtol=0, atol=1e-5, err_msg=str(rows))
        for mine, theirs in zip(one.iterations, other.iterations, strict=True):
            assert abs(mine.loss - theirs.loss) <= 1e-5
            if mine.slot_text != theirs.slot_text:
                break  # equally good; from here on they go different ways
            assert mine.num_valid == theirs.num_valid


@pytest.mark.parametrize("layout", [EIGHT, MIXED, UNSPLIT], ids=str)
def test_an_attack_does_not_depend_on_the_devices(done, layout, search, alone, model, tmp_path):
    assert_same_attack(done(search, layout, tmp_path / "attack"), alone, model)


def test_nor_on_the_processes_and_is_repeated_bit_for_bit(done, search, alone, model, tmp_path):
    first, second = (done(search, TWO_BY_TWO, tmp_path / name) for name in ("one", "two"))
    assert results(first) == results(second)
    assert_same_attack(first, alone, model)


def test_four_processes_attack_as_one_does(by_four, alone, model):
    assert_same_attack(by_four, alone, model)
    assert (alone / "summary.json").read_bytes() != b""
    names = {path.name for path in by_four.iterdir()}
    assert names - {"xla_cache"} == {path.name for path in alone.iterdir()} - {"xla_cache"}


def test_an_attack_goes_on_on_another_layout(run, done, search, alone, model, tmp_path):
    """A process is preempted in the middle of a batch; all save and stop at the same iteration."""
    workdir = tmp_path / "attack"
    arguments = [*search, f"--workdir={workdir}"]
    armed = {1: (DIE_AT, "preempted-attack", "1", "0")}
    ended = run(arguments, TWO_BY_TWO, programs=armed)
    assert [one.status for one in ended] == [PREEMPTED_STATUS] * 2, ended
    assert "preempted; the same command goes on" in ended[0].err
    assert (workdir / "attack_state.npz").exists() and not (workdir / "DONE").exists()
    done(search, MIXED, workdir)
    assert not (workdir / "attack_state.npz").exists()
    assert_same_attack(workdir, alone, model)


def losses_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def assert_same_training(workdir, reference):
    losses = losses_of(workdir)
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, losses_of(reference), rtol=0, atol=1e-4)
    task = load_task(TaskConfig("word_length", num_train=160, num_validation=32))
    texts = [example.text for example in task.validation]
    one, other = (load_victim(path).logits(texts) for path in (workdir, reference))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", [EIGHT, MIXED, TWO_BY_TWO, FOUR_BY_ONE], ids=str)
def test_a_training_does_not_depend_on_the_layout(done, layout, model, tmp_path):
    assert_same_training(done(TRAIN, layout, tmp_path / "trained"), model)


def test_a_training_goes_on_on_another_layout(run, done, model, tmp_path):
    workdir = tmp_path / "trained"
    armed = {2: (DIE_AT, "preempted-training", "6", "0")}
    ended = run([*TRAIN, f"--workdir={workdir}"], FOUR_BY_ONE, programs=armed)
    assert [one.status for one in ended] == [PREEMPTED_STATUS] * 4, ended
    saved = len(losses_of(workdir))
    assert 6 <= saved < STEPS
    done(TRAIN, ACROSS, workdir)
    assert_same_training(workdir, model)


@pytest.mark.parametrize("lost", [2, 0])
def test_a_killed_process_is_named_and_all_goes_on(run, done, lost, search, by_four, tmp_path):
    """Killed with SIGKILL in the middle of the second batch, or right after the first one."""
    workdir = tmp_path / "attack"
    moment = ("attack", "1") if lost == 0 else ("attack-iteration", "4")
    armed = {lost: (DIE_AT, *moment, "0")}
    ended = run([*search, f"--workdir={workdir}"], FOUR_BY_ONE, programs=armed, lost_seconds=6)
    others = [one for index, one in enumerate(ended) if index != lost]
    assert ended[lost].status == -9
    assert [one.status for one in others] == [PREEMPTED_STATUS] * 3, others
    for one in others:
        told = re.search(rf"robustjax: process {lost} of 4.*; start the same command", one.err)
        assert told, one.err
    recorded = len(records_of(workdir))
    assert 0 < recorded < len(records_of(by_four))
    done(search, FOUR_BY_ONE, workdir)
    assert results(workdir) == results(by_four)


def test_adversarial_training_in_two_processes(run, done, model, tmp_path):
    """Attack, pool and training, with evaluations; again from where it was killed."""
    arguments = [
        "advtrain",
        f"{ADVTRAIN}:point=nano-27k,task=word_length,attack=gcg",
        *HARDENING,
        "--config.advtrain.num_rounds=1",
        "--config.advtrain.attacks.gcg.schedule.end=1",
        f"--config.model.path={model}",
    ]
    straight = done(arguments, TWO_BY_TWO, tmp_path / "straight")
    workdir = tmp_path / "killed"
    armed = {1: (DIE_AT, "training", "2", "0")}
    ended = run([*arguments, f"--workdir={workdir}"], TWO_BY_TWO, programs=armed, lost_seconds=6)
    assert [one.status for one in ended] == [PREEMPTED_STATUS, -9], ended
    done(arguments, TWO_BY_TWO, workdir)
    for name in ("summary.json", "metrics.jsonl", "rounds/001/attacks/gcg/attack_records.jsonl"):
        assert (workdir / name).read_bytes() == (straight / name).read_bytes(), name
