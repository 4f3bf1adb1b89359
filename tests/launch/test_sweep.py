"""launch/sweep.py: the jobs of a sweep, their cost, and runs that are interrupted."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from launch import xpk
from launch.chip_hours import Plans
from launch.jobs import job_name, jobs_of
from launch.sweep import Sweep, main
from tests.launch.conftest import ROOT
from tests.launch.test_chip_hours import plan_row

STUDY = str(ROOT / "configs" / "study.py")
# What `robustjax` is where nothing is to be computed: it notes that it ran, and finishes.
STAND_IN = """#!/bin/bash
for word; do [[ $word != --workdir=* ]] || workdir=${word#--workdir=}; done
[ -e "$workdir" ] || mkdir -p "$workdir"
echo run >>"$workdir/runs.txt"
if [ -f "$workdir/../wait" ]; then sleep 30; fi
if [ -f "$workdir/fails" ]; then exit 2; fi
echo {} >"$workdir/DONE"
"""


@pytest.fixture
def config(tmp_path):
    """config(arguments...) -> the file of a config that sweeps over them."""

    def write(*arguments, name="attack"):
        path = tmp_path / "configs" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"def sweep():\n    return {list(arguments)!r}\n")
        return str(path)

    return write


THREE = [f"point=nano-27k,task=spam,attack=gcg,seed={seed}" for seed in range(3)]


def test_names_are_made_of_what_differs(config):
    jobs = jobs_of(config(*THREE), "gs://b/sweep", flags=["--config.mesh.data=4"])
    assert [job.name for job in jobs] == ["seed0", "seed1", "seed2"]
    assert jobs[1].workdir == "gs://b/sweep/seed1"
    assert jobs[1].axes == {"point": "nano-27k", "task": "spam", "attack": "gcg", "seed": "1"}
    name, argument, flag, workdir = jobs[1].command
    assert (name, flag, workdir) == (
        "attack",
        "--config.mesh.data=4",
        "--workdir=gs://b/sweep/seed1",
    )
    assert argument.startswith("--config=") and argument.endswith(f":{THREE[1]}")


def test_a_part_of_a_sweep_has_the_names_of_the_whole():
    only = "point=pythia-1.4b,task=imdb+spam,attack=gcg,seed=3"
    jobs = jobs_of(STUDY, "runs/{point}/{task}-{attack}-{seed}", only=only)
    assert [job.name for job in jobs] == [
        "pythia-1-4b-imdb-gcg-seed3",
        "pythia-1-4b-spam-gcg-seed3",
    ]
    assert jobs[0].workdir == "runs/pythia-1.4b/imdb-gcg-3"


def test_names_are_names_of_slices_and_workloads():
    assert job_name({"point": "qwen2.5-0.5b", "task": "password_match"}) == (
        "qwen2-5-0-5b-password-match"
    )
    assert job_name({"seed": "3"}) == "seed3" and job_name({"x": "3b"}) == "job-3b"
    long = "pythia-1-4b-password-match-random-token-seed4"
    assert xpk.workload_name("short") == "short"
    assert len(xpk.workload_name(long)) <= 40
    assert xpk.workload_name(long) != xpk.workload_name(long[:-1] + "3")


def test_a_job_runs_on_the_slice_of_its_plan(tmp_path):
    jobs = jobs_of(STUDY, "gs://b/w", only="point=pythia-14m,task=spam,attack=gcg", with_work=True)
    sweep = Sweep(jobs, tmp_path, "tpu", Plans([plan_row()]), ["--spot"])
    assert {"--tpu-type=v5litepod-8", "--spot"} <= {*sweep.command(jobs[0])}
    assert f"--tpu-name={jobs[0].name}" in sweep.command(jobs[0])
    sweep.flags.append("--tpu-type=v6e-4")
    assert "--tpu-type=v5litepod-8" not in sweep.command(jobs[0])


@pytest.mark.parametrize(
    ("workdir", "arguments", "reason"),
    [
        ("w/{point}", THREE, "seed1 and seed0 have one workdir, w/nano-27k"),
        ("w/{pont}", THREE, "the sweep has no 'pont'"),
        ("w/{where}", ["where=a", "where=a/b"], "is inside of that of a"),
        ("w", ["x=a.b", "x=a-b"], "are both called a-b"),
        ("w", [], "is empty"),
    ],
)
def test_jobs_that_would_meet_are_refused(config, workdir, arguments, reason):
    with pytest.raises(SystemExit, match=reason):
        jobs_of(config(*arguments), workdir)


def test_what_is_no_sweep_is_refused(config, tmp_path):
    with pytest.raises(SystemExit, match="no such file"):
        jobs_of("nowhere/attack.py", "w")
    (tmp_path / "attack.py").write_text("")
    with pytest.raises(SystemExit, match=r"has no sweep\(\)"):
        jobs_of(str(tmp_path / "attack.py"), "w")
    with pytest.raises(SystemExit, match="--command=smoke: one of study"):
        jobs_of(config(*THREE, name="smoke"), "w")
    with pytest.raises(SystemExit, match="the sweep has no tsk"):
        jobs_of(config(*THREE), "w", only="tsk=imdb")
    with pytest.raises(SystemExit, match="no job of"):
        jobs_of(config(*THREE), "w", only="task=imdb")


def test_the_papers_study_is_printed_with_its_cost(tmp_path, capsys):
    """Ten sizes, four tasks, two training attacks, five seeds."""
    plans = tmp_path / "plans.json"
    rows = [plan_row("pythia-14m", "v5e:1x1", 1), plan_row("pythia-12b", "v5e:8x8", 64)]
    plans.write_text(json.dumps({"rows": rows}))
    status = main(
        ["print", f"--config={STUDY}", "--workdir=gs://b/study", f"--plans={plans}"]
        + [f"--states={tmp_path}"]
    )
    head, *lines, gap, total = capsys.readouterr().out.splitlines()
    assert (status, gap) == (0, "")
    assert head.split() == ["job", "slice", "chips", "chip-hours", "state", "workdir"]
    assert len(lines) == 400
    name, kind, chips, hours, word, workdir = lines[0].split()
    assert (name, kind, chips, word) == ("pythia-14m-imdb-gcg-seed0", "v5litepod-1", "1", "waiting")
    assert workdir == f"gs://b/study/{name}" and float(hours) > 0
    assert lines[-1].split()[1:3] == ["v5litepod-64", "64"]
    assert lines[200].split()[1:4] == ["-", "-", "-"]
    said = sum(float(line.split()[3].replace(",", "")) for line in lines if " - " not in line)
    found = re.fullmatch(
        r"400 jobs \(400 waiting\); (.*) chip-hours, of which (.*) are to come; 320 jobs without a "
        r"figure",
        total,
    )
    assert found[1] == found[2]
    assert float(found[1].replace(",", "")) == pytest.approx(said, rel=1e-3)


def test_plans_of_the_project_are_taken_if_there_are_any(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("launch.sweep.ROOT", tmp_path)
    command = ["print", f"--config={STUDY}", "--workdir=gs://b/study", "--only=point=pythia-14m"]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("\n\n40 jobs (40 waiting); 40 jobs without a figure\n")
    plans = tmp_path / "benchmarks" / "results" / "plans.json"
    plans.parent.mkdir(parents=True)
    plans.write_text(json.dumps({"rows": [plan_row()]}))
    assert main(command) == 0
    assert "without a figure" not in capsys.readouterr().out


@pytest.fixture
def sweep(config, tmp_path, environment, project):
    """sweep(verb, flags...) -> a process that sweeps over three jobs on this machine."""
    program = tmp_path / "stand-in"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    running = []

    def start(verb, *flags, on="local", workdir=tmp_path / "w"):
        local = ["--poll=0.1", "--backoff=0.05", f"--python={program}"] if on == "local" else []
        command = ["--", "--config.x=a b"] if verb == "run" else []
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.sweep", verb, f"--config={config(*THREE)}"]
            + [f"--workdir={workdir}", f"--on={on}", f"--states={tmp_path / 'states'}"]
            + [*local, *flags, *command],
            cwd=project,
            env=environment,
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
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


def runs(tmp_path):
    found = [tmp_path / "w" / f"seed{seed}" / "runs.txt" for seed in range(3)]
    return [len(path.read_text().splitlines()) if path.exists() else 0 for path in found]


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_sweep_that_is_half_done_does_what_is_missing(sweep, tmp_path):
    (tmp_path / "w" / "seed1").mkdir(parents=True)
    (tmp_path / "w" / "seed1" / "fails").write_text("")
    _, err = ended(sweep("run", "--parallel=2"), 1)
    assert "2 done, 1 failed" in err
    assert runs(tmp_path) == [1, 1, 1]
    assert ended(sweep("status"))[0].splitlines() == [
        "seed0: done, 1 starts, 0 failures without progress",
        "seed1: failed, 1 starts, 1 failures without progress",
        "seed2: done, 1 starts, 0 failures without progress",
    ]
    (tmp_path / "w" / "seed1" / "fails").unlink()
    _, err = ended(sweep("run"))
    assert "3 done" in err and runs(tmp_path) == [1, 2, 1]
    _, err = ended(sweep("run"))
    assert runs(tmp_path) == [1, 2, 1]


def test_a_sweep_that_is_killed_goes_on(sweep, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "wait").write_text("")
    process = sweep("run", "--parallel=2")
    wait_for(lambda: runs(tmp_path) == [1, 1, 0])
    process.kill()
    process.communicate()
    out, _ = ended(sweep("print"))
    assert "3 jobs (2 running, 1 waiting); 3 jobs without a figure" in out
    # The jobs and those that look after them outlive it; the jobs are killed too.
    (tmp_path / "w" / "wait").unlink()
    process = sweep("run", "--parallel=3")
    wait_for(lambda: runs(tmp_path)[2] == 1)
    for pid in (tmp_path / "states" / "local").glob("*/process-0/jobs/*/pid"):
        number = int(pid.read_text().split()[0])
        if not (pid.parent / "exit_status").exists():
            subprocess.run(["kill", "-KILL", "--", f"-{number}"], check=True)
    _, err = ended(process)
    assert "3 done" in err and runs(tmp_path) == [2, 2, 1]


def test_a_state_of_another_workdir_is_refused(sweep, tmp_path):
    ended(sweep("run", "--only=seed=0"))
    path = tmp_path / "states" / "seed0.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"command": ["attack", "--workdir=elsewhere"]}))
    _, err = ended(sweep("status"), 1)
    assert "is of another workdir" in err


@pytest.mark.slow
def test_jobs_on_slices_of_their_own(sweep, cloud, tmp_path):
    flags = ("--parallel=2", "--tpu-type=v4-16", "--only=seed=0+1", "--poll=0.1", "--spot")
    _, err = ended(sweep("run", *flags, on="tpu", workdir="gs://b/w"))
    assert "2 done" in err
    created = {call[4]: call for call in cloud.calls("queued-resources", "create")}
    assert created.keys() == {"seed0", "seed1"}
    assert "--accelerator-type=v4-16" in created["seed1"] and "--spot" in created["seed1"]
    assert cloud.states() == {}
    before = len(cloud.calls("queued-resources", "create"))
    ended(sweep("run", *flags, on="tpu", workdir="gs://b/w"))
    assert len(cloud.calls("queued-resources", "create")) == before


def test_jobs_are_submitted_to_a_cluster_once(sweep, tmp_path):
    program = tmp_path / "bin" / "xpk"
    program.write_text(
        f'#!/bin/bash\n[ ! -e {tmp_path}/full ] || exit 1\nprintf "%s\\0" "$@" >>{tmp_path}/xpk\n'
        f'printf "\\n" >>{tmp_path}/xpk\n'
    )
    program.chmod(0o755)
    _, err = ended(sweep("run", on="xpk"), 1)
    assert "--cluster= is missing" in err
    flags = ("--cluster=c", "--docker-image=gcr.io/x/y", "--tpu-type=v5litepod-8", "--num-slices=1")
    ended(sweep("run", *flags, "--only=seed=0", on="xpk", workdir="gs://b/w"))
    ended(sweep("run", *flags, on="xpk", workdir="gs://b/w"))
    calls = [line.split("\0")[:-1] for line in (tmp_path / "xpk").read_text().splitlines()]
    assert [call[2] for call in calls] == [f"--workload=seed{seed}" for seed in range(3)]
    words = calls[0]
    assert words[:2] == ["workload", "create"] and {*flags} <= {*words}
    assert words[-1].startswith("--command=robustjax attack --config=")
    assert "'--config.x=a b'" in words[-1] and words[-1].endswith(" --workdir=gs://b/w/seed0")
    names = {word.split("=")[0] for word in words[2:]}
    assert names <= XPK_FLAGS
    assert "seed0: submitted" in ended(sweep("status", on="xpk", workdir="gs://b/w"))[0]


# https://github.com/AI-Hypercomputer/xpk/blob/main/src/xpk/parser/workload.py
XPK_FLAGS = {
    *("--workload", "--cluster", "--command", "--tpu-type", "--device-type", "--num-slices"),
    *("--docker-image", "--env", "--max-restarts", "--restart-on-user-code-failure", "--spot"),
    *("--project", "--zone", "--priority"),
}


def test_an_interrupt_leaves_the_jobs(sweep, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "wait").write_text("")
    process = sweep("run")
    wait_for(lambda: runs(tmp_path)[0] == 1)
    process.send_signal(signal.SIGINT)
    assert "the jobs go on" in ended(process, 130)[1]
