"""A real job, killed again and again: two processes looked after, and a workdir in a bucket.

Both end with the bits of one that ran straight.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from launch.supervise import read_state
from robustjax.runtime.mirror import Mirror
from tests.advtrain_kills import LONGER, make_model
from tests.compiling import QUICKLY
from tests.killing import DIE_AT, ROOT, differences
from tests.processes import Layout, run
from tests.runtime.fake_bucket import install

pytestmark = pytest.mark.slow

CONFIG = f"{ROOT}/configs/advtrain.py:point=nano-27k,task=word_length"
# A life of the job is a start of both processes. The first two kill one of them alone, so that its
# status is told; the third also what would tell it.
LIVES = """#!/bin/bash
shift 2 # -m robustjax
echo start >>{folder}/starts-$JAX_PROCESS_ID
case $(wc -l <{folder}/starts-$JAX_PROCESS_ID)-$JAX_PROCESS_ID in
  1-1) {python} {die_at} attack-iteration 1 1 "$@" ;;
  2-0) {python} {die_at} training 5 2 "$@" ;;
  3-0) {python} {die_at} saving-arrays 2 3 "$@"; kill -KILL 0 ;;
  *) {python} -m robustjax "$@" ;;
esac
"""
# Changes of the bucket that a process makes before the one that it does not live to make.
LOST_AFTER = (5, 14, 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("preempted")


@pytest.fixture(scope="module")
def environment(folder):
    keep = {name: value for name, value in os.environ.items() if not name.startswith("ROBUSTJAX")}
    return keep | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICKLY,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
    }


@pytest.fixture(scope="module")
def flags(folder):
    model = make_model(folder / "model")
    return [*LONGER, "--config.advtrain.num_rounds=2", f"--config.model.path={model}"]


def harden(environment, flags, workdir, program=("-m", "robustjax")):
    return subprocess.run(
        [
            sys.executable,
            *program,
            "advtrain",
            f"--config={CONFIG}",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def straight(folder, environment, flags):
    done = harden(environment, flags, folder / "straight")
    assert done.returncode == 0, done.stderr
    return folder / "straight"


def test_a_job_of_two_processes_is_as_if_nothing_was(folder, environment, flags):
    """Either process is killed, then one with its whole group; the other ends by itself."""
    lives = folder / "lives"
    lives.write_text(LIVES.format(folder=folder, python=sys.executable, die_at=DIE_AT))
    lives.chmod(0o755)
    workdir, state, straight = folder / "hardened", folder / "state.json", folder / "two"
    harden_in_two = ["advtrain", f"--config={CONFIG}", *flags, "--config.mesh.data=2"]
    ended = run([*harden_in_two, f"--workdir={straight}"], Layout(2, 1, (2, 1, 1)))
    assert [one.status for one in ended] == [0, 0], ended
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = environment | {
        "PROCESSES": "2",
        "PORT": str(port),
        "JAX_NUM_CPU_DEVICES": "1",
        "ROBUSTJAX_LOST_SECONDS": "20",  # four processes may share two cores
    }
    done = subprocess.run(
        [sys.executable, "-m", "launch.supervise", "--on=local", f"--state={state}", "--poll=0.5"]
        + ["--backoff=0.1", "--failures=2", f"--root={folder / 'local'}", f"--python={lives}"]
        + ["--", *harden_in_two, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "job failed 137" in done.stderr and "job lost" in done.stderr, done.stderr
    assert "without progress" not in done.stderr, done.stderr
    assert (read_state(state).starts, read_state(state).outcome) == (4, "done"), done.stderr
    for index in (0, 1):
        assert (folder / f"starts-{index}").read_text() == 4 * "start\n"
    assert differences(straight, workdir) == []


def test_a_workdir_in_a_bucket_outlives_every_disk(folder, environment, flags, straight):
    """The model that it starts from is in the bucket too, where it was copied."""
    copies, address = folder / "copies", "gs://bucket/hardened"
    shutil.copytree(folder / "model", folder / "store" / "bucket" / "model")
    flags = [*flags[:-1], "--config.model.path=gs://bucket/model"]
    environment = environment | {
        "FAKE_BUCKET": str(folder / "store"),
        "ROBUSTJAX_MIRROR": str(copies),
        "ROBUSTJAX_MIRROR_SECONDS": "0.2",
    }
    generations = []
    for number in (*LOST_AFTER, 0):
        program = ("-m", "tests.runtime.fake_bucket", str(number))
        done = harden(environment, flags, address, program)
        assert done.returncode == (-signal.SIGKILL if number else 0), done.stderr
        note = folder / "store" / "bucket" / "hardened" / "_mirror" / "note.json"
        generations.append(json.loads(note.read_text())["generation"])
        shutil.rmtree(copies)
    assert done.stdout == f"{address}\n"
    assert generations == sorted(generations) and generations[2] > 0
    install(folder / "store")
    here = folder / "brought"
    here.mkdir()
    Mirror(address, here).bring()
    assert differences(straight, here) == ["manifest.json"]
    manifests = [json.loads((one / "manifest.json").read_text()) for one in (straight, here)]
    paths = [manifest["config"]["model"].pop("path") for manifest in manifests]
    assert paths == [str(folder / "model"), "gs://bucket/model"]
    assert manifests[0]["config"] == manifests[1]["config"]
