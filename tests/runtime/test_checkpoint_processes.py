"""Checkpoints of processes that are killed, and of two that save together."""

import os
import pathlib
import random
import select
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from robustjax.runtime.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]


def _saver(folder, first_step):
    """Starts a process that saves steps without end, and waits for the first."""
    script = ROOT / "tests" / "runtime" / "save_in_a_loop.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, script, folder, str(first_step)], stdout=subprocess.PIPE, env=environment
    )
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "the saving process did not get to its first step"
    return process


def _wait_for_a_save(folder, seconds=30):
    """Returns as soon as an entry beside the checkpoint shows that another is written."""
    end = time.monotonic() + seconds
    while len(os.listdir(folder)) < 2 and time.monotonic() < end:
        time.sleep(0.0005)


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    dice = random.Random(0)
    like = {"weights": np.zeros((300, 1000), np.float32), "step": np.zeros((), np.int32)}
    torn = 0
    first = 0
    for attempt in range(6):
        process = _saver(tmp_path, first)
        time.sleep(dice.uniform(0, 0.15))
        if attempt % 2:  # on a busy machine no random moment may fall into a save
            _wait_for_a_save(tmp_path)
        process.send_signal(signal.SIGKILL)
        printed = [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        checkpoints = Checkpoints(tmp_path)
        latest = checkpoints.latest_step()
        torn += len(os.listdir(tmp_path)) > 1
        if latest is None and printed == [first] == [0]:
            continue  # killed while the very first was written
        # The step before the last one begun is there; the kill may have come before printing.
        assert latest in (printed[-1] - 1, printed[-1], printed[-1] + 1)
        step, arrays, metadata = checkpoints.restore(like)
        assert step == latest == metadata["step"] == arrays["step"]
        assert (arrays["weights"] == step).all()
        first = latest + 1
    assert torn, "no kill fell into a save, so this proved nothing"


@pytest.mark.slow
def test_two_processes_save_their_shards_and_read_them_back(tmp_path):
    script = ROOT / "tests" / "runtime" / "save_in_two_processes.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, script, tmp_path, port, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "same" in output, output
    assert sorted(os.listdir(tmp_path)) == ["00000003", "00000004", "model"]
    like = {"weights": np.zeros((8, 1000), np.float32)}
    for step in (3, 4):  # one process reads what two have written
        _, arrays, _ = Checkpoints(tmp_path).restore(like, step=step)
        expected = np.arange(8000, dtype=np.float32).reshape(8, 1000) + 0.5 * step
        np.testing.assert_array_equal(arrays["weights"], expected)
