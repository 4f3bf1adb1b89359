"""Jobs in processes of their own: all run, one at a time in each, and none outlives the others."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustjax.errors import UserError
from robustjax.runtime.workers import Job, run_side_by_side
from tests.runtime import jobs

ROOT = Path(__file__).parents[2]


def run(work, *arguments, names, workers=2):
    messages = []
    todo = [Job(*name.split("<")) for name in names]
    make_work = functools.partial(jobs.ready, work, *arguments)
    run_side_by_side(todo, make_work, workers, messages.append)
    return messages


def test_every_job_runs_once_and_is_heard():
    messages = run(jobs.tell_twice, names="abc")

    assert sorted(messages) == sorted((name, part) for name in "abc" for part in (1, 2))


def test_a_worker_does_one_job_after_the_other():
    messages = run(jobs.count, names="abcde")

    assert sorted(job for job, _, _ in messages) == list("abcde")
    for worker in {pid for _, pid, _ in messages}:
        counts = [before for _, pid, before in messages if pid == worker]
        assert counts == list(range(len(counts)))
    assert len({pid for _, pid, _ in messages}) <= 2


def test_the_first_that_can_start_is_the_next():
    messages = run(jobs.count, names=["b<a", "c<b", "a", "d"], workers=1)

    assert [job for job, _, _ in messages] == ["a", "b", "c", "d"]


def test_what_was_done_before_is_not_waited_for():
    assert [job for job, _, _ in run(jobs.count, names=["b<a"])] == ["b"]


def test_jobs_that_wait_for_each_other_are_an_error():
    with pytest.raises(ValueError, match="wait for each other"):
        run(jobs.count, names=["a<b", "b<a"])


def test_no_more_than_the_workers_run_at_once(tmp_path):
    run(jobs.note_times, tmp_path, names="abcd")

    times = [[float(x) for x in path.read_text().split()] for path in tmp_path.iterdir()]
    assert len(times) == 4
    most = max(sum(begin <= at < end for begin, end in times) for at, _ in times)
    assert most <= 2


def test_each_worker_has_its_own_cores():
    mine = os.sched_getaffinity(0)
    messages = run(jobs.tell_cores, names="ab")

    assert os.sched_getaffinity(0) == mine
    if len(mine) > 1:
        assert set(messages[0]).isdisjoint(messages[1])
    assert set().union(*messages) <= mine


def test_a_users_mistake_is_raised_here_and_stops_the_others(tmp_path):
    with pytest.raises(UserError, match="lower it"):
        run(jobs.fail_or_wait, tmp_path, names=["wait", "mistake"])

    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_any_other_end_is_an_error(capfd, tmp_path):
    with pytest.raises(RuntimeError, match="crash ended with exit code"):
        run(jobs.fail_or_wait, tmp_path, names=["crash"])
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import functools, pathlib\n"
        "from robustjax.runtime.workers import Job, run_side_by_side\n"
        "from tests.runtime import jobs\n"
        "if __name__ == '__main__':\n"
        f"    folder = pathlib.Path({str(tmp_path)!r})\n"
        "    make_work = functools.partial(jobs.ready, jobs.fail_or_wait, folder)\n"
        "    run_side_by_side([Job('wait')], make_work, 1, print)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, cwd=ROOT)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    assert is_alive(worker)

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    wait_until(lambda: not is_alive(worker))


@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
def test_preempted_workers_finish_their_steps(tmp_path, group):
    """Whether the parent alone is told, or all at once."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import functools, pathlib, sys\n"
        "from robustjax.runtime import interrupts\n"
        "from robustjax.runtime.workers import Job, run_side_by_side\n"
        "from tests.runtime import jobs\n"
        "if __name__ == '__main__':\n"
        f"    folder = pathlib.Path({str(tmp_path)!r})\n"
        "    make_work = functools.partial(jobs.ready, jobs.finish_step, folder)\n"
        "    try:\n"
        "        with interrupts.heard():\n"
        "            run_side_by_side([Job('a'), Job('b')], make_work, 2, print)\n"
        "    except interrupts.PreemptedError:\n"
        "        sys.exit(interrupts.PREEMPTED_STATUS)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], env=environment, cwd=ROOT, start_new_session=True
    )
    wait_until(lambda: len(list(tmp_path.glob("*-waits"))) == 2)
    (os.killpg if group else os.kill)(parent.pid, signal.SIGTERM)
    assert parent.wait(timeout=60) == 75
    assert len(list(tmp_path.glob("*-saved"))) == 2


def wait_until(holds, seconds=60):
    for _ in range(seconds * 20):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


def is_alive(pid):
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
