"""launch/gpu.sh against hosts that are folders, and launch/local.sh on this machine."""

import json
import subprocess

import pytest

from tests.launch.fake_host import stub

# Runs the command in the host's own home, with nothing of the caller's environment.
SSH = """#!/bin/bash
printf '%s\\n' "${*:1:$#-1}" >>{root}/ssh
host=${@:$#-1:1}; home={root}/hosts/gpu/${host#*@}
[ -d "$home" ] || exit 255
cd "$home" && exec env -i HOME="$home" PATH="$home/bin:/usr/bin:/bin" bash -c "${@:$#}"
"""
SCP = """#!/bin/bash
place() {
  local host=${1%%:*}
  if [[ $1 != *@*:* ]]; then printf %s "$1"
  elif [ ! -d "{root}/hosts/gpu/${host#*@}" ]; then exit 255
  else printf %s "{root}/hosts/gpu/${host#*@}/${1#*:}"; fi
}
source=$(place "${@:$#-1:1}") && target=$(place "${@:$#}") || exit 255
exec cp "$source" "$target"
"""


@pytest.fixture
def launch(project, environment, cloud, tmp_path):
    """launch(script, arguments...) -> a finished process; hosts first and second are there."""
    for name, text in {"ssh": SSH, "scp": SCP}.items():
        (tmp_path / "bin" / name).write_text(text.replace("{root}", str(cloud.root)))
        (tmp_path / "bin" / name).chmod(0o755)
    for host in ("first", "second"):
        stub(cloud.home("gpu", host) / "bin" / "python3")

    def call(script, *arguments, **variables):
        return subprocess.run(
            [project / "launch" / f"{script}.sh", *arguments],
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


def runs(home):
    return [json.loads(line) for line in (home / "runs.jsonl").read_text().splitlines()]


HOSTS = {"HOSTS": "me@first me@second"}


def test_a_job_on_two_gpu_hosts(launch, cloud, project):
    done = launch("gpu", "setup", "--ssh-options=-i a-key", **HOSTS)
    assert done.returncode == 0, done.stderr
    assert (cloud.root / "ssh").read_text().splitlines()[0] == "-o BatchMode=yes -i a-key me@first"
    synced = (cloud.home("gpu", "second") / "uv.jsonl").read_text()
    assert "launch/requirements-gpu.txt" in synced
    started = launch("gpu", "run", "--", "attack", "--x=a  'b'", **HOSTS)
    assert started.returncode == 0, started.stderr
    watched = launch("gpu", "attach", **HOSTS)
    assert watched.returncode == 0 and watched.stdout.endswith("job: done\n")
    for number, host in enumerate(("first", "second")):
        (run,) = runs(cloud.home("gpu", host))
        assert run["arguments"] == ["attack", "--x=a  'b'"]
        environment = run["environment"]
        assert environment.pop("ROBUSTJAX_COMMIT")
        assert environment == {
            "JAX_COORDINATOR_ADDRESS": "first:8476",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
    assert launch("gpu", "logs", **HOSTS).returncode == 0
    assert (project / "runs" / "logs" / "job" / "worker-1.txt").read_text().endswith("ends\n")
    assert launch("gpu", "status", **HOSTS).stdout.startswith("slice: ACTIVE\n")


def test_what_came_in_a_folder_of_the_hosts(launch, tmp_path):
    folder = tmp_path / "a shared folder"
    told = '{"marked": %d, "written": %d, "saved": ""}\n'
    assert launch("gpu", "setup", **HOSTS).returncode == 0
    assert launch("gpu", "progress", f"--workdir={folder}", **HOSTS).stdout == told % (0, 0)
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("12345\n")
    (folder / "DONE").write_text("{}")
    done = launch("gpu", "progress", f"--workdir={folder}", **HOSTS)
    assert (done.returncode, done.stdout) == (0, told % (1, 6)), done.stderr
    assert "WORKDIR is missing" in launch("gpu", "progress", **HOSTS).stderr
    assert launch("gpu", "progress", "--workdir=w", HOSTS="me@nowhere").returncode == 255


def test_one_gpu_host_is_no_company(launch, cloud):
    assert launch("gpu", "setup", "--hosts=me@second").returncode == 0
    assert launch("gpu", "run", "--hosts=me@second", "--", "attack").returncode == 0
    launch("gpu", "attach", "--hosts=me@second")
    (run,) = runs(cloud.home("gpu", "second"))
    assert not {name for name in run["environment"] if name.startswith("JAX_")}


def test_a_gpu_host_that_cannot_be_reached(launch):
    done = launch("gpu", "setup", HOSTS="me@first me@nowhere")
    assert done.returncode == 255 and "worker 1: status 255" in done.stderr
    assert "HOSTS is missing" in launch("gpu", "status").stderr


@pytest.fixture
def here(launch, tmp_path):
    """here(verb, arguments...): two processes on this machine."""
    program = tmp_path / "stand-in"
    program.write_text(
        f"#!/bin/bash\nenv | grep ^JAX_ | sort >{tmp_path}/env-$JAX_PROCESS_ID\n$3\n"
    )
    program.chmod(0o755)
    flags = (f"--root={tmp_path / 'jobs'}", f"--python={program}", "--processes=2", "--port=9999")
    return lambda verb, *arguments: launch("local", verb, *flags, *arguments)


def test_two_processes_on_this_machine(here, tmp_path):
    assert here("status").stdout.endswith("job: none\n")
    assert here("run", "--", "true").returncode == 0
    assert here("attach").stdout.endswith("job: done\n")
    for number in (0, 1):
        assert (tmp_path / f"env-{number}").read_text().splitlines() == [
            "JAX_COORDINATOR_ADDRESS=127.0.0.1:9999",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={number}",
        ]


def test_a_process_that_fails_on_this_machine(here):
    assert here("run", "--", "false").returncode == 0
    ended = here("attach")
    assert ended.returncode == 1 and ended.stdout.endswith("job: failed 1\n")
    for verb in ("create", "setup", "delete", "stop"):
        assert here(verb).returncode == 0
