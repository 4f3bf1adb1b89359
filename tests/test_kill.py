"""A study killed again and again, with SIGKILL, ends with the bits of one that ran straight."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.compiling import QUICKLY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
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
    ("training", 1, TRAINING),
    ("training-torn", 4, TRAINING),
    ("saving-arrays", 1, TRAINING),
    ("saving-marker", 1, TRAINING),
    ("saving-arrays", 3, TRAINING),
    ("stage-finished", 1, None),
    ("attack-torn", 1, ATTACK),
    ("attack", 1, ATTACK),
    ("attack", 3, ATTACK_2),
    ("stage-claimed", 3, HARDENING),
    ("attack-torn", 2, HARDENING),
    ("training", 2, HARDENING),
    ("saving-marker", 1, HARDENING),
    ("saving-arrays", 2, HARDENING),
    ("attack", 1, HARDENING),
    ("saving-marker", 2, HARDENING),
    ("stage-unmarked", 1, HARDENING),
    ("attack-torn", 1, ATTACK_3),
    ("stage-claimed", 5, "report"),
    ("stage-unmarked", 1, "report"),
)
# The same six steps, saved after 2, 4 and 6.
PRETRAINING = f"pretrain/{WHO}"
PRETRAINING_KILLS = (
    ("training", 1, PRETRAINING),
    ("training-torn", 4, PRETRAINING),
    ("saving-arrays", 2, PRETRAINING),
    ("saving-marker", 1, PRETRAINING),
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


def move_results(workdir, aside):
    aside.mkdir()
    for path in workdir.iterdir():
        if path.name != "xla_cache":
            path.rename(aside / path.name)


def start(*program, workdir, config="tiny_study.py", cores=None, flags=()):
    """The study as a process of its own, with the compiled programs kept in the workdir."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.Popen(
        [
            sys.executable,
            *program,
            "study",
            f"--config={ROOT / 'tests' / config}",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=ROOT,
        env=env | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)),
    )


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
        helper = str(ROOT / "tests" / "study_kill.py")
        process = start(helper, moment, str(count), str(SEED + index), workdir=workdir)
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
        helper = str(ROOT / "tests" / "study_kill.py")
        process = start(helper, moment, str(count), str(SEED + index), workdir=killed, **options)
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
    import shutil

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


def differences(one, other):
    """Names of what is not the same, bit for bit, in two workdirs; compiled programs left out."""
    found, expected = contents(other), contents(one)
    return sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )


def contents(workdir):
    found = {}
    # Somebody may commit while this runs; the report shows the beginning of the commit's name.
    commit = json.loads((workdir / "manifest.json").read_text())["git_commit"] or "no commit"
    shown = re.compile(re.escape(commit[:12].encode()) + b"(-dirty)?")
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir).as_posix()
        if path.is_dir():
            if path.name == "arrays":
                # Orbax names its files at random and notes the time: what counts are the numbers.
                found[name] = {key: _bits(array) for key, array in saved_arrays(path).items()}
        elif name.startswith("xla_cache/") or path.name == "timing.json" or "/arrays/" in name:
            continue
        elif path.name == "COMPLETE.json":
            found[name] = json.loads(path.read_text())["arrays"]  # the rest are Orbax's checksums
        elif name == "manifest.json":
            volatile = ("git_commit", "devices", "versions")
            manifest = json.loads(path.read_text())
            found[name] = {k: v for k, v in manifest.items() if k not in volatile}
        elif path.suffix == ".html":
            found[name] = shown.sub(b"commit", path.read_bytes())
        else:
            found[name] = path.read_bytes()
    return found


def saved_arrays(folder):
    restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)).restore(folder)
    return {name: np.array(array) for name, array in restored.items()}


def _bits(array):
    return str(array.dtype), array.shape, array.tobytes()
