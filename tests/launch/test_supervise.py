"""launch/supervise.py against a cloud that is a folder: preemption, failures, the end of it all."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch.launcher import Look
from launch.progress import Progress, is_done, progress, workdir_of
from launch.supervise import Patience, State, StateFile, Supervisor, read_state

WORKDIR = "gs://bucket/w"
COMMAND = ("advtrain", "--config=configs/advtrain.py", f"--workdir={WORKDIR}")
FLAGS = ("--tpu-type=v5litepod-8", "--spot", "--poll=0.05", "--backoff=0.05")


@pytest.fixture
def supervise(project, environment):
    """supervise(flags...) -> a process of launch/supervise.py, of which stderr is read."""
    running = []

    def start(*flags, command=COMMAND, **variables):
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.supervise", *FLAGS, *flags, "--", *command],
            cwd=project,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def ended(process, status=0):
    _, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return err


def starts(cloud):
    path = cloud.root / "all_runs.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_slice_that_is_preempted_is_asked_for_again(supervise, cloud, project):
    cloud.will_be("WAITING_FOR_RESOURCES", "ACTIVE", workers=2)
    cloud.behave(worker_0={"waits": True, "writes": True}, worker_1={"waits": True})
    process = supervise()
    wait_for(lambda: starts(cloud) == 2)
    # The project goes on; the job does not change for it.
    (project / "file.txt").write_text("later\n")
    cloud.behave()
    cloud.preempt("a-slice")
    err = ended(process)
    assert "slice SUSPENDED" in err and "it had come on" in err
    assert starts(cloud) == 4
    runs = [json.loads(line) for line in (cloud.root / "all_runs.jsonl").open()]
    assert len({run["ROBUSTJAX_COMMIT"] for run in runs}) == 1
    assert cloud.states() == {}  # given back
    assert len(cloud.calls("queued-resources", "create")) == 2
    assert all("--spot" in call for call in cloud.calls("queued-resources", "create"))
    state = read_state(project / "runs" / "launch" / "job.json")
    assert (state.outcome, state.status, state.starts) == ("done", 0, 2)
    assert (project / "runs" / "logs" / "job" / "worker-1.txt").exists()

    err = ended(supervise())  # nothing is left to be done
    assert "done after 2 starts" in err and starts(cloud) == 4


def test_it_is_killed_and_started_again_while_the_job_runs(supervise, cloud):
    cloud.behave(worker_0={"waits": True})
    for _ in range(2):
        process = supervise()
        wait_for(lambda: starts(cloud) == 1)
        process.kill()
        process.communicate()
    cloud.release()
    ended(supervise())
    assert starts(cloud) == 1
    assert len(cloud.calls("queued-resources", "create")) == 1
    assert cloud.states() == {}


@pytest.mark.slow
def test_it_is_killed_while_the_slice_is_awaited(supervise, cloud):
    cloud.will_be(*["WAITING_FOR_RESOURCES"] * 12, "ACTIVE")
    process = supervise()
    wait_for(lambda: cloud.states())
    process.kill()
    process.communicate()
    ended(supervise())
    assert starts(cloud) == 1
    assert len(cloud.calls("queued-resources", "create")) == 1


def test_only_one_looks_after_a_job(supervise, cloud):
    cloud.behave(worker_0={"waits": True})
    first = supervise()
    wait_for(lambda: starts(cloud) == 1)
    assert "being looked after already" in ended(supervise(), 1)
    first.send_signal(signal.SIGINT)
    assert "the job goes on" in ended(first, 130)
    assert cloud.states() == {"a-slice": "ACTIVE"}


def test_another_command_or_slice_needs_another_state(supervise, cloud):
    ended(supervise())
    assert "of another command" in ended(supervise(command=("attack", "--workdir=w")), 2)
    err = ended(supervise(TPU_NAME="another"), 2)
    assert "'TPU_NAME': 'a-slice'" in err and "'TPU_NAME': 'another'" in err
    assert "is in {" in ended(supervise("--zone=elsewhere"), 2)
    assert cloud.calls("--zone=elsewhere") == []


@pytest.mark.slow
def test_it_gives_up_when_nothing_comes_of_it(supervise, cloud):
    cloud.will_be("ACTIVE", workers=2)
    cloud.behave(worker_0={"waits": True}, worker_1={"status": 1})
    err = ended(supervise("--failures=3"), 1)
    assert "gives up after 3 failures without progress" in err
    assert starts(cloud) == 6
    assert cloud.states() == {}


@pytest.mark.slow
def test_it_does_not_give_up_while_something_comes_of_it(supervise, cloud):
    cloud.behave(worker_0={"status": 1, "writes": True})
    process = supervise("--failures=2")
    wait_for(lambda: starts(cloud) >= 4)
    cloud.behave()
    ended(process)
    assert starts(cloud) >= 5


@pytest.mark.slow
def test_a_folder_that_only_the_workers_see_tells_what_came_of_it(
    supervise, cloud, project, tmp_path
):
    folder = tmp_path / "a shared  folder"
    cloud.behave(worker_0={"waits": True, "writes": True})
    process = supervise(command=(*COMMAND[:-1], f"--workdir={folder}"))
    wait_for((folder / "attack_records.jsonl").exists)
    cloud.behave()
    cloud.preempt("a-slice")
    err = ended(process)
    assert starts(cloud) == 2 and "without progress" not in err
    state = read_state(project / "runs" / "launch" / "job.json")
    assert state.failures == 0 and state.best.written > 0


@pytest.mark.slow
def test_a_mistake_of_the_users_is_not_repeated(supervise, cloud):
    cloud.behave(worker_0={"status": 2})
    ended(supervise(), 2)
    assert starts(cloud) == 1 and cloud.states() == {}


@pytest.mark.parametrize("name", ["PROJECT", "ZONE", "TPU_NAME"])
def test_what_is_missing_is_told_before_anything_is_done(supervise, cloud, name):
    assert f"{name} is missing" in ended(supervise(**{name: ""}), 2)
    assert cloud.calls() == []


def test_a_slice_that_the_script_knows_nothing_of(supervise, cloud):
    err = ended(supervise("--tpu-type=v99-8"), 2)
    assert "which --runtime-version?" in err and err.count("the slice was refused") == 1


@pytest.mark.slow
def test_a_quota_that_stays_too_small(supervise, cloud):
    cloud.fail("create", says="Quota limit exceeded")
    err = ended(supervise("--failures=2"), 1)
    assert err.count("the slice was refused") == 2
    assert starts(cloud) == 0


@pytest.mark.slow
def test_a_worker_that_stays_unreachable_costs_the_slice(supervise, cloud):
    cloud.will_be("ACTIVE", workers=2)
    cloud.behave(worker_0={"waits": True, "writes": True})
    process = supervise(SSH_TRIES="1")
    wait_for(lambda: starts(cloud) == 2)
    cloud.fail("ssh", "--worker=1", status=255, times=3)
    wait_for(lambda: len(cloud.calls("queued-resources", "create")) == 2)
    cloud.behave()
    ended(process)
    assert starts(cloud) == 4


@pytest.mark.slow
def test_gcloud_that_does_not_answer_is_waited_for(supervise, cloud):
    cloud.behave(worker_0={"waits": True})
    process = supervise()
    wait_for(lambda: starts(cloud) == 1)
    cloud.fail("describe", says="no network", times=6)
    wait_for(lambda: '"times": 0' in (cloud.root / "faults.json").read_text())
    cloud.release()
    err = ended(process)
    assert "slice UNKNOWN" in err and starts(cloud) == 1


@pytest.mark.slow
def test_partial_answers_end_nothing(supervise, cloud):
    """Of gcloud: no state, no number of workers; of a worker: nothing."""
    cloud.will_be("ACTIVE", workers=2)
    cloud.behave(worker_0={"waits": True}, worker_1={"waits": True})
    process = supervise()
    wait_for(lambda: starts(cloud) == 2)
    for words in (("--format=value(state.state)",), ("--format=value(networkEndpoints.len())",)):
        cloud.fail(*words, prints="", times=3)
    wait_for(lambda: '"times": 0' in (cloud.root / "faults.json").read_text())
    cloud.fail("ssh", "--worker=1", prints="", times=2)
    wait_for(lambda: (cloud.root / "faults.json").read_text().count('"times": 0') == 3)
    process.send_signal(signal.SIGINT)
    err = ended(process, 130)
    assert starts(cloud) == 2 and cloud.states() == {"a-slice": "ACTIVE"}
    assert "slice UNKNOWN" in err


@pytest.mark.slow
def test_a_slice_that_cannot_be_deleted_is_shouted(supervise, cloud):
    cloud.fail("delete", says="Internal error")
    err = ended(supervise("--backoff=0.001"), 1)
    assert "IS BILLED" in err
    assert len(cloud.calls("delete")) == 10
    cloud.heal()
    ended(supervise())  # the same command tries again
    assert cloud.states() == {}


@pytest.mark.slow
def test_the_slice_may_be_kept(supervise, cloud):
    ended(supervise("--keep"))
    assert cloud.states() == {"a-slice": "ACTIVE"}


def test_changes_that_could_not_be_sent_again_are_refused(supervise, cloud, project):
    (project / "file.txt").write_text("changed\n")
    assert "uncommitted changes" in ended(supervise(), 1)
    assert cloud.calls() == []


class Scripted:
    """A launch script that says what it is told to, at times of its own."""

    def __init__(self, looks):
        self.looks, self.done, self.now, self.waited = list(looks), [], 0.0, []
        self.writes, self.asked = False, []

    def look(self):
        return self.looks.pop(0)

    def do(self, verb, *arguments):
        self.done.append(verb)
        return 0

    def progress(self, workdir):
        self.asked.append(workdir)
        return Progress(written=self.done.count("run") if self.writes else 0)

    def sleep(self, seconds):
        self.waited.append(seconds)
        self.now += seconds


PATIENCE = Patience(poll=7.0, backoff=10.0, longest=60.0, failures=5)
NONE, RUNNING, DONE = (Look("ACTIVE", job) for job in ("none", "running", "done"))
ABSENT = Look("ABSENT")


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """scripted(looks...) -> the supervisor and its script."""

    def make(*looks, patience=PATIENCE, command=("attack",)):
        script = Scripted(looks)
        monkeypatch.setattr("launch.supervise.Launcher", lambda kind, flags: script)
        state = State([*command], [], "tpu", "", 0.0)
        file = StateFile(tmp_path / "state.json")
        times = {"clock": lambda: script.now, "sleep": script.sleep}
        return Supervisor(file, state, patience, **times), script

    return make


def test_it_waits_longer_after_every_failure(scripted):
    supervisor, script = scripted(NONE, *[Look("ACTIVE", "failed 1")] * 4, DONE, ABSENT)
    assert supervisor.run() == 0
    assert script.waited == [20.0, 40.0, 60.0, 60.0]
    assert script.done == ["setup", "run"] + ["stop", "setup", "run"] * 4


@pytest.mark.parametrize("end", ["failed 3", "lost", "preempted"])
def test_it_gives_up_after_ends_without_progress(scripted, end):
    supervisor, script = scripted(NONE, *[Look("ACTIVE", end)] * 5, Look("ACTIVE"))
    assert supervisor.run() == (3 if end == "failed 3" else 1)
    assert script.done[-2:] == ["logs", "delete"]
    assert script.done.count("run") == 5


def test_it_gives_up_when_every_slice_is_taken_away(scripted):
    gone = [NONE, Look("SUSPENDED"), ABSENT]
    supervisor, script = scripted(*gone * 4, NONE, Look("SUSPENDED"), ABSENT)
    assert supervisor.run() == 1
    assert script.done.count("create") == 4 and script.done.count("run") == 5


SHARED = ("attack", "--workdir=/shared/w")
TAKEN_AWAY = (NONE, Look("SUSPENDED"), ABSENT)
FAILED = Look("ACTIVE", "failed 1")


@pytest.mark.parametrize(
    ("looks", "failures"), [(TAKEN_AWAY * 7 + (NONE,), 2), ((NONE, *[FAILED] * 7), 1)]
)
def test_a_job_that_comes_on_in_a_shared_folder_is_not_given_up(scripted, looks, failures):
    """Nobody can look into it while there is no slice; the next one tells."""
    patience = dataclasses.replace(PATIENCE, failures=failures)
    supervisor, script = scripted(*looks, DONE, ABSENT, command=SHARED, patience=patience)
    script.writes = True
    assert supervisor.run() == 0
    assert script.done.count("run") == 8 and {*script.asked} == {"/shared/w"}


@pytest.mark.parametrize("looks", [TAKEN_AWAY * 5, (NONE, *[FAILED] * 5, ABSENT)])
def test_a_job_that_stands_still_in_a_shared_folder_is_given_up(scripted, looks):
    supervisor, script = scripted(*looks, command=SHARED)
    assert supervisor.run() == 1 and script.done.count("run") == 5


def test_an_end_that_was_counted_before_a_kill_is_not_counted_again(scripted):
    supervisor, script = scripted(Look("ACTIVE", "lost"), DONE, ABSENT)
    supervisor._state.starts = supervisor._state.counted = 3
    supervisor._state.failures = 2
    assert supervisor.run() == 0
    assert supervisor._state.failures == 2 and script.waited == []
    assert script.done == ["stop", "setup", "run"]


def test_workers_that_cannot_be_reached_for_a_moment_are_waited_for(scripted):
    away = Look("ACTIVE", "unreachable")
    supervisor, script = scripted(RUNNING, away, away, RUNNING, away, away, DONE, ABSENT)
    assert supervisor.run() == 0 and script.done == []


def test_workers_that_stay_away_cost_the_slice(scripted):
    away = Look("ACTIVE", "unreachable")
    supervisor, script = scripted(RUNNING, away, away, away, ABSENT, NONE, DONE, ABSENT)
    assert supervisor.run() == 0 and script.done == ["delete", "create", "setup", "run"]


def test_a_slice_that_goes_slowly_is_counted_once(scripted):
    """It is being taken away for a while, and cannot be deleted at once."""
    going = [*[Look("SUSPENDING")] * 9, *[Look("SUSPENDED")] * 9, Look("DELETING")]
    supervisor, script = scripted(ABSENT, NONE, *going, ABSENT, NONE, DONE, ABSENT)
    assert supervisor.run() == 0
    assert supervisor._state.failures == 1 and supervisor._state.requests == 2
    assert script.done.count("delete") == 9


def test_it_gives_up_on_slices_that_never_live_to_be_set_up(scripted):
    supervisor, script = scripted(*[ABSENT, Look("SUSPENDED")] * 5, ABSENT)
    assert supervisor.run() == 1
    assert script.done.count("create") == 5 and script.done.count("run") == 0


@pytest.mark.parametrize("partial", [Look("ACTIVE"), Look("UNKNOWN"), Look("PROVISIONING")])
def test_answers_that_say_nothing_are_waited_out(scripted, partial):
    supervisor, script = scripted(RUNNING, partial, partial, DONE, ABSENT)
    assert supervisor.run() == 0
    assert script.done == [] and supervisor._state.failures == 0


def test_a_deadline_stops_the_job_and_gives_the_slice_back(scripted):
    patience = dataclasses.replace(PATIENCE, poll=100.0, hours=250 / 3600)
    supervisor, script = scripted(NONE, *[RUNNING] * 4, patience=patience)
    assert supervisor.run() == 1
    assert script.waited == [100.0, 100.0, pytest.approx(50.1)]
    assert script.done == ["setup", "run", "stop", "logs", "delete"]
    assert supervisor._state.outcome == "deadline"


def test_a_torn_state_file_is_told(tmp_path):
    path = tmp_path / "state.json"
    path.write_text('{"command": [')
    with pytest.raises(SystemExit, match=r"state\.json: not a state file"):
        read_state(path)


def test_progress_is_what_only_grows(tmp_path):
    before = progress(str(tmp_path))
    assert before == Progress()
    records = tmp_path / "a" / "attack_records.jsonl"
    records.parent.mkdir()
    records.write_text("a record\n")
    first = progress(str(tmp_path))
    assert first.is_beyond(before) and not before.is_beyond(first)
    for other in ("xla_cache/program", "timing.json", "events.out", "log.txt"):
        path = tmp_path / other
        path.parent.mkdir(exist_ok=True)
        path.write_text("more and more")
    assert not progress(str(tmp_path)).is_beyond(first)
    state = tmp_path / "a" / "attack_state.npz"
    state.write_bytes(b"1")
    second = progress(str(tmp_path))
    assert second.is_beyond(first)
    stat = state.stat()
    os.utime(state, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    third = progress(str(tmp_path))
    assert third.is_beyond(second)
    records.unlink()  # a checkpoint that is pruned makes less of it
    assert not progress(str(tmp_path)).is_beyond(third)
    assert third.joined(progress(str(tmp_path))) == third
    assert not is_done(str(tmp_path))
    (tmp_path / "DONE").write_text("{}")
    assert is_done(str(tmp_path)) and progress(str(tmp_path)).is_beyond(third)


def test_progress_in_a_bucket(cloud, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert progress(WORKDIR) == Progress() and not is_done(WORKDIR)
    folder = cloud.bucket(WORKDIR)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("12345\n")
    (folder / "DONE").write_text("{}")
    assert progress(WORKDIR) == Progress(marked=1, written=6)
    assert is_done(WORKDIR)


@pytest.mark.parametrize(
    ("command", "workdir"),
    [
        (["attack", "--workdir=gs://b/w"], "gs://b/w"),
        (["attack", "--workdir", "w", "--x"], "w"),
        (["attack", "--workdir"], ""),
        (["report", "w", "--out=r"], ""),
    ],
)
def test_the_workdir_of_a_command(command, workdir):
    assert workdir_of(command) == workdir
