"""launch/tpu.sh against a cloud that is a folder: commands, faults, and what a worker gets."""

import json
import re
import shutil
import subprocess
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.launch.conftest import ROOT, git

VERBS = ("create", "setup", "run", "status", "logs", "attach", "stop", "delete")


def runs(cloud, worker=0):
    """What robustjax was started with on a worker, start by start."""
    path = cloud.home("a-slice", worker) / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_job_from_create_to_delete(tpu, cloud, project):
    cloud.will_be("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", workers=2)
    cloud.behave(worker_0={"waits": True}, worker_1={"waits": True})

    created = tpu("create", "--spot", "--tpu-type=v5litepod-16", "--valid-until=6h")

    assert created.returncode == 0, created.stderr
    assert [line.split()[-1] for line in created.stderr.splitlines()] == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]
    (request,) = cloud.calls("queued-resources", "create")
    assert {"--spot", "--accelerator-type=v5litepod-16", "--valid-until-duration=6h"} <= {*request}
    assert {"--runtime-version=v2-alpha-tpuv5-lite", "--node-id=a-slice", "--async"} <= {*request}
    assert {"--project=a-project", "--zone=us-west4-a"} <= {*request}

    assert tpu("create", "--tpu-type=v5litepod-16").returncode == 0
    assert len(cloud.calls("queued-resources", "create")) == 1  # it is there already

    done = tpu("setup")
    assert done.returncode == 0, done.stderr
    commit = git(project, "rev-parse", "HEAD")
    for worker in (0, 1):
        current = cloud.home("a-slice", worker) / "robustjax" / "current"
        assert (current / "COMMIT").read_text() == f"{commit}\n"
        assert (current / "file.txt").read_text() == "as committed\n"
        assert not (current / ".git").exists()

    assert tpu("status").stdout.splitlines() == [
        "slice: ACTIVE",
        "worker 0: none",
        "worker 1: none",
        "job: none",
    ]
    started = tpu("run", "--env=EXTRA=more", "--", "attack", "--workdir=gs://b/w")
    assert started.returncode == 0, started.stderr
    assert tpu("status").stdout.splitlines()[-1] == "job: running"
    again = tpu("run", "--", "attack")
    assert again.returncode == 73 and "running already" in again.stderr

    cloud.release()
    watched = tpu("attach")
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.splitlines() == [
        "robustjax begins",
        "robustjax ends",
        "worker 0: exited 0",
        "worker 1: exited 0",
        "job: done",
    ]
    for worker in (0, 1):
        (run,) = runs(cloud, worker)
        assert run["arguments"] == ["attack", "--workdir=gs://b/w"]
        assert run["environment"] == {
            "ROBUSTJAX_COMMIT": commit,
            "ROBUSTJAX_DISTRIBUTED": "1",
            "ROBUSTJAX_POLL": "0.1",
            "EXTRA": "more",
        }

    assert tpu("logs", "--logs=runs/here").returncode == 0
    for worker in (0, 1):
        log = (project / "runs" / "here" / f"worker-{worker}.txt").read_text()
        assert log == "robustjax begins\nrobustjax ends\n"

    assert tpu("delete").returncode == 0
    assert {"--force", "--quiet"} <= {*cloud.calls("queued-resources", "delete")[0]}
    assert cloud.states() == {}
    assert tpu("status").stdout == "slice: ABSENT\n"
    assert tpu("delete").returncode == 0  # there is none, which is what was wanted


def test_the_environment_is_made_once_for_a_lock_file(tpu, cloud, ready):
    ready()
    assert tpu("setup").returncode == 0
    calls = [json.loads(line) for line in (cloud.home("a-slice", 0) / "uv.jsonl").open()]
    synced = [call for call in calls if call[:2] == ["pip", "sync"]]
    assert len(synced) == 1 and synced[0][-1].endswith("launch/requirements-tpu.txt")
    installed = [call for call in calls if call[:2] == ["pip", "install"]]
    assert len(installed) == 2 and all("--no-deps" in call for call in installed)


@pytest.mark.slow
def test_a_host_that_fails_is_what_the_job_ends_with(tpu, cloud, ready):
    ready(2)
    cloud.behave(worker_0={"waits": True}, worker_1={"status": 3})
    assert tpu("run", "--", "attack").returncode == 0
    wait_for(lambda: "worker 1: exited 3" in tpu("status").stdout)
    status = tpu("status")
    assert status.stdout.splitlines()[1:] == [
        "worker 0: running",
        "worker 1: exited 3",
        "job: failed 3",
    ]
    assert status.returncode == 3
    assert tpu("stop").returncode == 0
    assert tpu("status").stdout.splitlines()[1] == "worker 0: exited 75"
    assert tpu("attach").returncode == 3


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ("exited 0,exited 0", "done"),
        ("exited 75,exited 0", "preempted"),
        ("exited 75,running", "running"),
        ("exited 75,exited 2", "failed 2"),
        ("exited 2,exited 75", "failed 2"),
        ("exited 5,exited 2", "failed 5"),
        ("running,unreachable", "unreachable"),
        ("running,lost", "lost"),
        ("running,none", "lost"),
        ("none,none", "none"),
        ("exited 0,running", "running"),
        ("unreachable,exited 0", "unreachable"),
        ("", "unreachable"),
    ],
)
def test_states_of_workers_are_combined(states, said):
    script = (
        f'source {ROOT}/launch/hosts.sh; IFS=, read -ra states <<<"$1"; summary "${{states[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script, "-", states], capture_output=True, text=True)
    assert done.stdout == f"{said}\n", done.stderr


def test_a_quota_that_is_too_small_is_told(tpu, cloud):
    says = "ERROR: Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded."
    cloud.fail("create", says=says, times=1)
    refused = tpu("create", "--tpu-type=v5litepod-8")
    assert refused.returncode == 1
    assert says in refused.stderr and "launch/README.md" in refused.stderr
    assert cloud.states() == {}
    assert tpu("create", "--tpu-type=v5litepod-8").returncode == 0


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_request_that_comes_to_nothing_is_told(tpu, cloud, state):
    cloud.will_be("WAITING_FOR_RESOURCES", state)
    done = tpu("create", "--tpu-type=v4-8")
    assert done.returncode == 1
    assert f"is {state}: delete it" in done.stderr


@pytest.mark.slow
def test_one_worker_of_four_cannot_be_reached(tpu, cloud, ready):
    ready(4)
    cloud.fail("ssh", "--worker=2", status=255, says="port 22: Connection refused")
    cloud.behave(**{f"worker_{worker}": {"waits": True} for worker in range(4)})
    before = len(cloud.calls("ssh", "--worker=2"))

    started = tpu("run", "--", "attack", SSH_TRIES="3")

    assert started.returncode == 255
    assert "[worker 2] port 22: Connection refused" in started.stderr
    assert "worker 2: status 255" in started.stderr and "did not start everywhere" in started.stderr
    # Three times to start, three to stop.
    assert len(cloud.calls("ssh", "--worker=2")) - before == 6
    cloud.heal()
    answers = tpu("status").stdout.splitlines()[1:5]
    assert answers == [
        "worker 0: exited 75",
        "worker 1: exited 75",
        "worker 2: none",
        "worker 3: exited 75",
    ]


@pytest.mark.slow
def test_a_bad_connection_is_tried_again(tpu, cloud):
    cloud.will_be("ACTIVE", workers=2)
    assert tpu("create", "--tpu-type=v4-16").returncode == 0
    cloud.fail("ssh", "--worker=1", status=255, times=2)
    cloud.fail("scp", "--worker=0", status=255, times=1)
    assert tpu("setup").returncode == 0
    assert (cloud.home("a-slice", 1) / "robustjax" / "current" / "COMMIT").exists()


@pytest.mark.slow
def test_a_host_that_restarted_lost_its_job(tpu, cloud, ready):
    ready()
    cloud.behave(worker_0={"waits": True})
    assert tpu("run", "--", "attack").returncode == 0
    pid = cloud.home("a-slice", 0) / "robustjax" / "jobs" / "job" / "pid"
    number, ticks = pid.read_text().split()
    pid.write_text(f"{number} {int(ticks) + 1}\n")  # another process has its number now
    assert tpu("status").stdout.splitlines()[-1] == "job: lost"
    pid.write_text(f"{number} {ticks}\n")
    assert tpu("status").stdout.splitlines()[-1] == "job: running"


def test_uncommitted_changes_are_refused_unless_forced(tpu, cloud, project):
    assert tpu("create", "--tpu-type=v4-8").returncode == 0
    (project / "file.txt").write_text("changed\n")
    refused = tpu("setup")
    assert refused.returncode == 2 and "uncommitted changes" in refused.stderr
    assert cloud.calls("scp") == []

    forced = tpu("setup", "--force")

    assert forced.returncode == 0, forced.stderr
    current = cloud.home("a-slice", 0) / "robustjax" / "current"
    assert (current / "file.txt").read_text() == "changed\n"
    commit = git(project, "rev-parse", "HEAD")
    assert (current / "COMMIT").read_text() == f"{commit}-dirty\n"
    # A commit that is named is what it is, whatever was changed since.
    assert tpu("setup", f"--commit={commit}").returncode == 0
    assert (current / "file.txt").read_text() == "as committed\n"
    assert tpu("setup", "--commit=nothing").returncode == 2


@pytest.mark.parametrize("name", ["PROJECT", "ZONE", "TPU_NAME", "TPU_TYPE"])
def test_what_is_missing_is_named(tpu, cloud, name):
    variables = {"TPU_TYPE": "v4-8"} | {name: ""}
    done = tpu("create", **variables)
    assert done.returncode == 2
    assert f"{name} is missing" in done.stderr
    assert f"--{name.lower().replace('_', '-')}=" in done.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("fly",), "no verb fly"),
        (("run", "attack"), "comes after --"),
        (("run",), "what shall robustjax do"),
        (("status", "--colour=red"), "no flag --colour"),
        (("status", "--tpu-name=A_B"), "TPU_NAME=A_B"),
        (("status", "--job=a b"), "JOB="),
        (("run", "--env=x", "--", "attack"), "NAME=VALUE is wanted"),
        (("create", "--tpu-type=v9-8"), "which --runtime-version?"),
        (("create", "--tpu-type=v4-8", "--capacity=free"), "CAPACITY=free"),
    ],
)
def test_mistakes_are_one_line(tpu, cloud, arguments, reason):
    cloud.will_be("ACTIVE")
    tpu("create", "--tpu-type=v4-8")
    done = tpu(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]


def test_a_dry_run_shows_every_command_and_runs_none(tpu, cloud):
    shown = {}
    for verb in VERBS:
        rest = ("--", "attack", "--x=a b") if verb == "run" else ()
        done = tpu(verb, "--tpu-type=v4-16", *rest, DRY_RUN="1", WORKERS="2")
        assert done.returncode == 0, done.stderr
        shown[verb] = done.stdout.splitlines()
        assert all(line.startswith(("gcloud ", "git archive ", "mkdir ")) for line in shown[verb])
    assert cloud.calls() == [] and cloud.states() == {}
    assert {verb: len(lines) for verb, lines in shown.items()} == {
        "create": 1,
        "setup": 8,  # the archive, the first connection, and copy, unpack, install for each
        "run": 2,
        "status": 3,
        "logs": 3,
        "attach": 1,
        "stop": 2,
        "delete": 1,
    }


@pytest.mark.slow
def test_no_secret_is_printed_or_stored(tpu, cloud, project, tmp_path):
    secrets = {"HF_TOKEN": "hf_Secret1", "GOOGLE_APPLICATION_CREDENTIALS": "/home/Secret2.json"}
    outputs = []
    for verb in VERBS:
        rest = ("--", "attack") if verb == "run" else ("--tpu-type=v4-8",)
        for dry in ("1", "0"):
            done = tpu(verb, *rest, DRY_RUN=dry, **secrets)
            assert done.returncode == 0, (verb, done.stderr)
            outputs.append(done.stdout + done.stderr)
    outputs.append(tpu("run", "--env=MY_API_KEY=Secret3", "--", "attack").stderr)
    assert "looks like a secret" in outputs[-1]
    outputs += [str(cloud.calls())]
    outputs += [(cloud.root / "all_runs.jsonl").read_text()]
    outputs += [path.read_text() for path in (project / "runs").rglob("*.txt")]
    assert not [text for text in outputs if "Secret" in text]


# Anything but NUL, which no argument of a program can hold.
WORDS = st.lists(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=12),
    min_size=1,
    max_size=4,
)


HARD = (
    ["two  blanks", "'single' \"double\"", "$HOME `id` $(id) ${x}", "new\nline\r\ttab"],
    ["", " ", "*", "~", "!!", "\\", "\\n", "#", "-n", "a;b|c&d>e<f", "é 北京 😀", "--"],
)


@pytest.fixture
def arrive(tpu, cloud, ready):
    """arrive(words): they are one word each and the same on the worker, whatever stands in them."""
    ready()
    count = 0

    def check(words):
        nonlocal count
        count += 1
        started = tpu("run", f"--job=job-{count}", "--", "attack", *words)
        assert started.returncode == 0, started.stderr
        wait_for(lambda: len(runs(cloud)) == count)
        assert runs(cloud)[-1]["arguments"] == ["attack", *words]

    return check


@pytest.mark.parametrize("words", HARD, ids=["spaces", "signs"])
def test_arguments_arrive_unchanged(arrive, words):
    arrive(words)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WORDS)
def test_any_arguments_arrive_unchanged(arrive, words):
    arrive(words)


@pytest.mark.slow
def test_environment_arrives_unchanged(tpu, cloud, ready):
    ready()
    value = "a  'b' \"c\" $HOME\n`id` = é"
    assert tpu("run", f"--env=EXTRA={value}", "--", "attack").returncode == 0
    wait_for(lambda: (cloud.home("a-slice", 0) / "runs.jsonl").exists())
    assert runs(cloud)[0]["environment"]["EXTRA"] == value


@pytest.mark.slow
def test_workers_are_worked_on_side_by_side(tpu, cloud, ready):
    """Each waits for all others to have begun; in turn none would end."""
    ready(3)
    cloud.fail("ssh", status=0, meets=len(cloud.calls("ssh")) + 3)
    assert tpu("run", "--", "attack").returncode == 0


@pytest.mark.slow
def test_the_scripts_are_clean():
    assert shutil.which("shellcheck"), "install shellcheck"
    scripts = sorted((ROOT / "launch").glob("*.sh"))
    assert len(scripts) == 5
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nobodys_names_are_in_the_scripts():
    """No bucket, zone or account: they come from flags."""
    names = {
        "bucket": r"gs://[a-z][a-z0-9._-]*",
        "zone": r"\b[a-z]+-[a-z]+\d-[a-f]\b",
        "account": r"[\w.]+@[\w-]+\.\w+",
    }
    for path in (ROOT / "launch").iterdir():
        if path.is_file():
            found = {what: re.findall(name, path.read_text()) for what, name in names.items()}
            assert found == {what: [] for what in names}, path
