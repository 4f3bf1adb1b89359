"""A small project to launch from, and a cloud that is a folder."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.fake_gcloud import Cloud

ROOT = Path(__file__).parents[2]
SLICE = {"PROJECT": "a-project", "ZONE": "us-west4-a", "TPU_NAME": "a-slice"}
# Faults are tried again at once.
QUICK = {"POLL_SECONDS": "0.05", "SSH_PAUSE": "0.05", "ROBUSTJAX_POLL": "0.1"}


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A repository with the launch folder and one more file, committed."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(
        ROOT / "launch", folder / "launch", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "file.txt").write_text("as committed\n")
    (folder / ".gitignore").write_text("runs/\n__pycache__/\n")
    git(folder, "init", "-q", ".")
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", "A commit")
    return folder


@pytest.fixture
def project(template, tmp_path):
    """A repository of this test's own."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    return folder


@pytest.fixture
def cloud(tmp_path):
    """The cloud; no call may be one that the real gcloud does not take."""
    cloud = Cloud(tmp_path / "cloud")
    yield cloud
    for pid in cloud.root.glob("hosts/*/*/robustjax/jobs/*/pid"):
        try:
            os.killpg(int(pid.read_text().split()[0]), signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert cloud.refused() == ""


@pytest.fixture
def environment(cloud, tmp_path):
    """Variables of a process that sees this cloud, and only it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = Path(__file__).with_name("fake_gcloud.py")
    (programs / "gcloud").write_text(f'#!/bin/bash\nexec {sys.executable} {fake} "$@"\n')
    (programs / "gcloud").chmod(0o755)
    # No other gcloud is found, should this one not be.
    path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(tmp_path), "FAKE_GCLOUD": str(cloud.root)} | SLICE | QUICK


@pytest.fixture
def tpu(project, environment):
    """tpu(arguments..., NAME=VALUE) -> a finished process of launch/tpu.sh."""

    def call(*arguments, **variables):
        return subprocess.run(
            [project / "launch" / "tpu.sh", *arguments],
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


@pytest.fixture
def ready(tpu, cloud):
    """ready(workers) -> a slice that is set up."""

    def make(workers=1):
        cloud.will_be("ACTIVE", workers=workers)
        for verb in ("create", "setup"):
            done = tpu(verb, TPU_TYPE="v5litepod-8")
            assert done.returncode == 0, done.stderr

    return make
