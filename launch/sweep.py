r"""Many jobs, from the `sweep()` of a config: `python -m launch.sweep print|run|status [flags]`.

    python -m launch.sweep print --config=configs/study.py --workdir=gs://BUCKET/study

    print     the jobs, how they are, and what they cost
    run       does what is not done, `--parallel` at a time; the same command goes on
    status    how each job is

`--on=local` runs jobs on this machine, `tpu` each on a slice of its own, `gpu` on the hosts of
launch/gpu.sh, all through launch/supervise.py; `xpk` submits them to a Kubernetes cluster with
TPUs. Flags that are not known here go to what runs the job; what comes after -- to the command.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch import xpk
from launch.chip_hours import Cost, Plans, read_plans
from launch.jobs import Job, jobs_of
from launch.launcher import KINDS, ROOT
from launch.progress import is_done, workdir_of
from launch.supervise import State, hear_signals, read_state

POLL_SECONDS = 0.2

_PLANS = Path("benchmarks/results/plans.json")


@dataclasses.dataclass
class Sweep:
    """The jobs of a sweep and where their states are.

    Attributes:
        jobs: in the order in which they are begun.
        folder: of state files and logs, each named as its job.
        on: what runs them: of `KINDS`, or `xpk`.
        costs: of jobs on TPU slices.
        flags: for what runs them.
    """

    jobs: list[Job]
    folder: Path
    on: str
    costs: Plans
    flags: list[str]

    def file(self, job: Job) -> Path:
        """The state file of a job."""
        return self.folder / f"{job.name}.json"

    def word(self, job: Job) -> str:
        """How a job is: `done`, `running`, `left`, `failed`, `deadline`, `submitted`, `waiting`."""
        state = read_state(self.file(job))
        if state is None:
            return "done" if "://" not in job.workdir and is_done(job.workdir) else "waiting"
        if workdir_of(state.command) != job.workdir:
            raise SystemExit(
                f"sweep: {self.file(job)} is of another workdir; delete it, or give other --states"
            )
        if state.outcome == "submitted" and is_done(job.workdir):
            return "done"
        return state.outcome or ("running" if _is_held(self.file(job)) else "left")

    def command(self, job: Job) -> list[str]:
        """The command that looks after a job, or submits it."""
        cost = self.costs.cost(job.work)
        flags = list(self.flags)
        if cost and not any(flag.startswith("--tpu-type=") for flag in flags):
            flags += [f"--tpu-type={cost.tpu_type}"] if self.on in ("tpu", "xpk") else []
        if self.on == "xpk":
            return xpk.submission(job, flags)
        if self.on == "tpu":
            flags.append(f"--tpu-name={job.name}")
        if self.on == "local":
            flags.append(f"--root={self.folder / 'local' / job.name}")
        program = [sys.executable, "-m", "launch.supervise"]
        own = [f"--on={self.on}", f"--job={job.name}", f"--state={self.file(job).resolve()}"]
        return [*program, *own, *flags, "--", *job.command]


def run(sweep: Sweep, parallel: int) -> int:
    """Does what is not done; returns 0 if all is in the end."""
    hear_signals()
    sweep.folder.mkdir(parents=True, exist_ok=True)
    waiting = list(sweep.jobs)
    running: dict[str, tuple[Job, subprocess.Popen | None]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                if not _is_needed(sweep, job):
                    continue
                if sweep.on == "xpk":
                    _submit(sweep, job)
                else:
                    running[job.name] = job, _start(sweep, job)
            for name, (job, process) in list(running.items()):
                if process is None:  # a process that outlived an earlier run of this program
                    if not _is_held(sweep.file(job)):
                        waiting.insert(0, job)
                        del running[name]
                elif process.poll() is not None:
                    _say(f"{name}: {sweep.word(job)}")
                    del running[name]
            if running:
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        _say("interrupted; the jobs go on, and so does the same command")
        return 130
    words = [sweep.word(job) for job in sweep.jobs]
    _say(", ".join(f"{words.count(word)} {word}" for word in sorted(set(words))))
    return 0 if {*words} <= {"done", "submitted"} else 1


def _is_needed(sweep: Sweep, job: Job) -> bool:
    word = sweep.word(job)
    if word in ("failed", "deadline"):  # once more, with its failures forgotten
        sweep.file(job).unlink()
    if word == "waiting" and "://" in job.workdir and is_done(job.workdir):
        return False  # state files of another machine
    return word not in ("done", "submitted")


def _start(sweep: Sweep, job: Job) -> subprocess.Popen | None:
    """Looks after a job; None if somebody does already."""
    if _is_held(sweep.file(job)):
        return None
    _say(f"{job.name}: begins")
    with open(sweep.folder / f"{job.name}.log", "a") as log:
        return subprocess.Popen(
            sweep.command(job), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _submit(sweep: Sweep, job: Job) -> None:
    """Submits a job to the cluster, and remembers that."""
    done = subprocess.run(sweep.command(job), stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"sweep: {job.name} was not taken; the same command goes on from here")
    state = State(list(job.command), [], "xpk", "", time.time(), outcome="submitted")
    temporary = sweep.file(job).with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(state), indent=1))
    temporary.rename(sweep.file(job))


def _is_held(path: Path) -> bool:
    """Whether a process looks after the job of a state file."""
    try:
        with open(f"{path}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def table(sweep: Sweep) -> str:
    """All jobs, with what they cost and how they are, and the total."""
    costs = [sweep.costs.cost(job.work) for job in sweep.jobs]
    words = [sweep.word(job) for job in sweep.jobs]
    rows = [("job", "slice", "chips", "chip-hours", "state", "workdir")]
    for job, cost, word in zip(sweep.jobs, costs, words, strict=True):
        figures = (
            ("-", "-", "-")
            if cost is None
            else (cost.tpu_type, str(cost.chips), f"{cost.chip_hours:,.1f}")
        )
        rows.append((job.name, *figures, word, job.workdir))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.rjust(width) if index in (2, 3) else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", _total(costs, words)])


def _total(costs: Sequence[Cost | None], words: Sequence[str]) -> str:
    known = [cost.chip_hours for cost in costs if cost is not None]
    left = [
        cost.chip_hours
        for cost, word in zip(costs, words, strict=True)
        if cost is not None and word != "done"
    ]
    counts = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
    parts = [f"{len(costs)} jobs ({counts})"]
    if known:
        parts.append(f"{sum(known):,.1f} chip-hours, of which {sum(left):,.1f} are to come")
    if missing := len(costs) - len(known):
        parts.append(f"{missing} jobs without a figure")
    return "; ".join(parts)


def status(sweep: Sweep) -> str:
    """How every job is, and how far it has come."""
    lines = []
    for job in sweep.jobs:
        line = f"{job.name}: {sweep.word(job)}"
        state = read_state(sweep.file(job))
        if state is not None and state.starts:
            line += f", {state.starts} starts, {state.failures} failures without progress"
        lines.append(line)
    return "\n".join(lines)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} sweep: {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses flags and does what they say; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m launch.sweep", description="Many jobs.", allow_abbrev=False
    )
    add = parser.add_argument
    add("verb", choices=("print", "run", "status"))
    add("--config", required=True, help="a file with sweep()")
    add("--workdir", required=True, help="of a job, such as gs://BUCKET/study/{name}")
    add("--command", default="", help="of robustjax; by default what the config is named after")
    add("--only", default="", help="such as point=pythia-14m+pythia-31m,task=imdb")
    add("--on", choices=(*KINDS, "xpk"), default="local", help="what runs the jobs")
    add("--parallel", type=int, default=1, help="jobs at a time")
    add("--plans", type=Path, help=f"what models cost ({_PLANS}, if it is there)")
    add("--states", type=Path, help="folder of states and logs (runs/launch/sweep-CONFIG)")
    known, flags = parser.parse_known_args(given[:cut])
    if known.parallel < 1:
        parser.error(f"--parallel={known.parallel} must be at least 1")
    if wrong := [flag for flag in flags if not flag.startswith("--")]:
        parser.error(f"{wrong[0]!r} is no flag")
    if known.on == "gpu" and known.parallel > 1:
        parser.error("--parallel: all jobs would run on the same hosts; give --hosts to each sweep")
    plans = known.plans or (ROOT / _PLANS if (ROOT / _PLANS).exists() else None)
    jobs = jobs_of(
        known.config,
        known.workdir,
        known.command,
        given[cut + 1 :],
        known.only,
        with_work=plans is not None,
    )
    sweep = Sweep(
        jobs,
        known.states or ROOT / "runs" / "launch" / f"sweep-{Path(known.config).stem}",
        known.on,
        read_plans(plans) if plans else Plans(),
        flags,
    )
    if known.verb == "print":
        print(table(sweep))
    elif known.verb == "status":
        print(status(sweep))
    elif os.environ.get("DRY_RUN") == "1":
        print(*(shlex.join(sweep.command(job)) for job in jobs), sep="\n")
    else:
        return run(sweep, known.parallel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
