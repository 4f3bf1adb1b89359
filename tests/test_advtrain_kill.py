"""Adversarial training, killed and preempted again and again, is as if nothing was."""

import subprocess
import sys

import pytest

from tests.advtrain_kills import KILLS, PREEMPTIONS
from tests.killing import ROOT

pytestmark = pytest.mark.slow


def test_killed_and_preempted(tmp_path):
    script = [sys.executable, "-m", "tests.advtrain_kills", str(tmp_path), "--seed=20240718"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert f"killed {len(KILLS)} times; differs: nothing" in done.stdout
    assert f"preempted {len(PREEMPTIONS)} times; differs: nothing" in done.stdout


def test_there_are_moments_of_every_kind():
    kinds = [moment.split("-")[0] for moment, _ in KILLS]
    counts = {kind: kinds.count(kind) for kind in ("attack", "training", "saving", "stage")}
    assert min(counts.values()) >= 3 and len(KILLS) >= 12, counts
    assert {moment for moment, _ in PREEMPTIONS} == {
        f"preempted-{kind}" for kind in ("attack", "training", "saving")
    }
