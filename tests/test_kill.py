"""A study killed again and again, with SIGKILL, ends with the bits of one that ran straight."""

import json
import os
import random
import shutil
import signal
import time

import orbax.checkpoint as ocp
import pytest

from tests import killing
from tests.killing import DIE_AT, differences, move_results, saved_arrays

pytestmark = pytest.mark.slow

WHO = "nano-27k-s0"
TRAINING = f"finetune/{WHO}"
ATTACK = f"attack/{WHO}/none-r0/gcg"
ATTACK_2 = f"attack/{WHO}/none-r0/random_token"
HARDENING = f"advtrain/{WHO}/gcg"
ATTACK_3 = f"attack/{WHO}/gcg-r1/gcg"

# What kills, at which time in its process, and the stage that is begun but not done then.
# Clean training: 6 steps, saved after 2, 4 and 6, then the model. An attack: two batches.
# Hardening: two rounds of two batches, 3 steps, the model, the checkpoint.
KILLS = (
    ("stage-claimed", 1, None),  # the study itself
    ("stage-claimed", 2, "tokenizer"),
    ("stage-finished", 1, None),
    ("training-torn", 4, TRAINING),
    ("saving-arrays", 1, TRAINING),
    ("saving-marker", 1, TRAINING),
    ("stage-finished", 1, None),
    ("attack-torn", 1, ATTACK),
    ("attack", 1, ATTACK),
    ("attack", 3, ATTACK_2),
    ("stage-claimed", 3, HARDENING),
    ("attack-torn", 2, HARDENING),
    ("saving-marker", 1, HARDENING),
    ("saving-arrays", 2, HARDENING),
    ("stage-unmarked", 1, HARDENING),
    ("attack-torn", 1, ATTACK_3),
    ("stage-claimed", 5, "report"),
    ("stage-unmarked", 1, "report"),
)
# The same six steps, saved after 2, 4 and 6.
PRETRAINING = f"pretrain/{WHO}"
PRETRAINING_KILLS = (
    ("training-torn", 4, PRETRAINING),
    ("saving-arrays", 2, PRETRAINING),
    ("stage-unmarked", 1, PRETRAINING),
    ("stage-finished", 1, None),
    ("training", 1, TRAINING),
)
RANDOM_KILLS = 4
SEED = 20240718


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("killed") / "study"


@pytest.fixture(scope="module")
def straight(workdir):
    """The results of a study that nobody disturbed, moved aside; compiled programs stay."""
    finished = start("-m", "robustjax", workdir=workdir)
    _, err = finished.communicate()
    assert finished.returncode == 0, err
    aside = workdir.with_name("straight")
    move_results(workdir, aside)
    return aside


def start(*program, workdir, config="tiny_study.py", **options):
    """The study as a process of its own."""
    config = f"tests/{config}"
    return killing.start(*program, command="study", config=config, workdir=workdir, **options)


def unfinished_stage(workdir):
    begun = {path.parent for path in workdir.rglob("stage.json")} - {workdir}
    (*rest,) = [path for path in begun if not (path / "DONE").exists()]
    assert len(rest) <= 1, rest
    return rest[0].relative_to(workdir).as_posix() if rest else None


def finish(workdir, **options):
    process = start("-m", "robustjax", workdir=workdir, **options)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out == f"{workdir / 'report' / 'index.html'}\n"


def test_killed_at_every_kind_of_moment(straight, workdir):
    for index, (moment, count, stage) in enumerate(KILLS):
        process = start(DIE_AT, moment, str(count), str(SEED + index), workdir=workdir)
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"{moment} {count}: {err}"
        assert unfinished_stage(workdir) == stage, f"{moment} {count}"
    finish(workdir)
    assert differences(straight, workdir) == []
    move_results(workdir, workdir.with_name("killed-at-moments"))


def test_killed_after_random_delays(straight, workdir):
    """From outside, with a compiled program among the torn files."""
    programs = (workdir / "xla_cache").glob("jit_*-cache")
    torn = max(programs, key=lambda path: path.stat().st_size)
    torn.write_bytes(torn.read_bytes()[:1000])
    print(f"seed {SEED}")
    delays = random.Random(SEED)
    for _ in range(RANDOM_KILLS):
        process = start("-m", "robustjax", workdir=workdir)
        time.sleep(delays.uniform(3, 9))
        process.kill()
        process.communicate()
    finish(workdir)
    assert differences(straight, workdir) == []


def test_killed_while_pretraining(tmp_path):
    """The language model that the classifier starts from, and the step from one to the other."""
    options = {"config": "tiny_study.py:pretrain,rounds=1"}
    killed = tmp_path / "killed"
    for index, (moment, count, stage) in enumerate(PRETRAINING_KILLS):
        process = start(DIE_AT, moment, str(count), str(SEED + index), workdir=killed, **options)
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"{moment} {count}: {err}"
        assert unfinished_stage(killed) == stage, f"{moment} {count}"
    finish(killed, **options)
    finish(tmp_path / "straight", **options)
    assert differences(tmp_path / "straight", killed) == []


def test_side_by_side_and_killed_is_one_after_the_other(tmp_path):
    """Two scaling points on a core each, all processes killed twice; against one core for both."""
    cores = sorted(os.sched_getaffinity(0))
    options = {"config": "tiny_study.py:points=nano-27k+nano-80k", "cores": {cores[0]}}
    finish(tmp_path / "in-turn", **options)

    options |= {"cores": set(cores[:2]), "flags": ["--config.workers=2"]}
    for seconds in (12, 20):
        process = start("-m", "robustjax", workdir=tmp_path / "side-by-side", **options)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    finish(tmp_path / "side-by-side", **options)

    both = [tmp_path / name for name in ("in-turn", "side-by-side")]
    for workdir in both:
        manifest = json.loads((workdir / "manifest.json").read_text())
        del manifest["config"]["workers"]
        (workdir / "manifest.json").write_text(json.dumps(manifest))
    assert differences(*both) == []


def test_the_comparison_can_fail(straight, tmp_path):
    """A changed byte, a changed weight and a file too many are all found."""
    other = tmp_path / "other"
    shutil.copytree(straight, other)
    assert differences(straight, other) == []
    metrics = other / TRAINING / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b"loss", b"lost", 1))
    (other / ATTACK / "more.txt").write_text("")
    model = other / TRAINING / "model" / "arrays"
    arrays = saved_arrays(model)
    arrays[next(iter(arrays))].flat[0] += 1e-7
    shutil.rmtree(model)
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)).save(
        model, args=ocp.args.PyTreeSave(arrays)
    )
    assert differences(straight, other) == [
        f"{ATTACK}/more.txt",
        f"{TRAINING}/metrics.jsonl",
        f"{TRAINING}/model/arrays",
    ]
