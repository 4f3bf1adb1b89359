r"""Keeps a job alive until it is done: `python -m launch.supervise [flags] -- COMMAND`.

    python -m launch.supervise --on=tpu --tpu-type=v5litepod-8 --spot -- \
        advtrain --config=configs/advtrain.py:point=pythia-14m,task=imdb --workdir=gs://BUCKET/W

Asks for a slice, sends the code, starts `robustjax COMMAND`, and looks at it now and then. A slice
that is preempted is asked for again, and the same command is started again, which goes on where it
was. It gives up after some failures without progress, and gives the slice back at the end, however
that comes. Kill it whenever you like: the job goes on, and so does the same command.

What to do next follows from how things are, not from what was done before; the state file only
keeps what cannot be seen: the commit, the failures so far, when all began, how it ended.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.launcher import KINDS, ROOT, Launcher, Look
from launch.progress import Progress, progress, workdir_of

WAITING = (
    *("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"),
    *("SUSPENDING", "DELETING", "UNKNOWN"),
)
"""States of a slice that time changes by itself."""

PLACE = {"tpu": ("PROJECT", "ZONE", "TPU_NAME"), "gpu": ("HOSTS",)}
"""Variables, or flags, that say where a job is."""

MISTAKE = 2
"""Status of robustjax, and of the launch scripts, that another try would end with too."""

RUNNING_ALREADY = 73
"""Status of `run` if a process that was killed had started the command."""

UNREACHABLE_LOOKS = 3
"""After so many in a row the slice is taken for dead."""

TRIES_TO_DELETE = 10


@dataclasses.dataclass
class State:
    """What has to be remembered of a job, in a file.

    Attributes:
        command: what robustjax does.
        flags: of the launch script.
        on: which script that is.
        commit: what is sent, also when the project has moved on since.
        began: seconds since the epoch.
        place: which slice or hosts, by the names of `PLACE`.
        requests: how often a slice was asked for.
        starts: how often the command was started.
        failures: ends of slice or job since anything was seen to have come of it.
        counted: requests and starts whose end was counted; this program may be killed after that.
        best: how far it has come.
        outcome: `done`, `failed`, `deadline`; empty while it is looked after.
        status: exit status of this program, once there is an outcome.
    """

    command: list[str]
    flags: list[str]
    on: str
    commit: str
    began: float
    place: dict[str, str] = dataclasses.field(default_factory=dict)
    requests: int = 0
    starts: int = 0
    failures: int = 0
    counted: int = 0
    best: Progress = Progress()
    outcome: str = ""
    status: int = 0

    @property
    def tries(self) -> int:
        """Requests and starts."""
        return self.requests + self.starts


class StateFile:
    """The file of a state, which one process at a time may hold."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(f"{path}.lock", "a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"supervise: {path} is being looked after already") from None

    def read(self) -> State | None:
        """What is in the file; None if there is none."""
        return read_state(self.path)

    def write(self, state: State) -> None:
        """Writes the file whole or not at all."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "w") as file:
            json.dump(dataclasses.asdict(state), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


def read_state(path: Path) -> State | None:
    """What is in a state file; None if there is none."""
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        return State(**values | {"best": Progress(**values["best"])})
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"supervise: {path}: not a state file ({error!r}); delete it") from error


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long what may take.

    Attributes:
        poll: seconds from one look to the next.
        backoff: seconds before something is tried again; doubled with every failure,
        longest: up to these.
        failures: ends without progress after which it gives up.
        hours: after which the job is stopped; 0 for no limit.
    """

    poll: float = 60.0
    backoff: float = 30.0
    longest: float = 1800.0
    failures: int = 5
    hours: float = 0.0


class Supervisor:
    """Looks after one job.

    Args:
        file: where its state is kept.
        state: of the job.
        patience: how long what may take.
        keep: leave the slice at the end.
        clock: seconds since the epoch; for tests.
        sleep: waits so many seconds; for tests.
    """

    def __init__(
        self,
        file: StateFile,
        state: State,
        patience: Patience,
        *,
        keep: bool = False,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._file, self._state, self._patience, self._keep = file, state, patience, keep
        self._clock, self._sleep = clock, sleep
        self._launcher = Launcher(state.on, state.flags)
        self._unreachable = 0
        self._is_there = False  # the slice
        self._said = ""

    def run(self) -> int:
        """Looks and acts until there is an outcome; returns the exit status."""
        self._file.write(self._state)
        while not self._state.outcome:
            hours = self._patience.hours
            if hours and self._clock() > self._state.began + 3600 * hours:
                self._stop()
                self._end("deadline", 1)
                break
            self._act(self._launcher.look())
        self._give_back()
        return self._state.status

    def _act(self, look: Look) -> None:
        """The one thing to do next."""
        self._say(f"slice {look.slice}" + (f", job {look.job}" if look.job else ""))
        self._is_there = look.slice == "ACTIVE"
        if look.job != "unreachable":
            self._unreachable = 0
        if look.slice in WAITING or look.job == "running" or look == Look("ACTIVE"):
            self._rest(self._patience.poll)
        elif look.slice == "ABSENT":
            self._state.requests += 1
            self._file.write(self._state)
            if status := self._launcher.do("create", "--wait=0"):
                self._failed("the slice was refused", status)
        elif look.slice != "ACTIVE":  # preempted, or the request failed
            if self._state.counted < self._state.tries:
                self._failed(f"the slice is {look.slice}", 1)
            else:
                self._rest(self._patience.poll)
            if not self._state.outcome:
                self._launcher.do("delete")
        elif look.job == "none":
            self._start()
        elif look.job == "done":
            self._end("done", 0)
        elif look.job == "unreachable":
            self._unreachable += 1
            if self._unreachable < UNREACHABLE_LOOKS:
                self._rest(self._patience.poll)
                return
            self._unreachable = 0
            self._failed("workers cannot be reached", 1)
            if not self._state.outcome:
                self._launcher.do("delete")  # another slice may be better
        else:
            status = int(look.job.partition(" ")[2] or 1)
            self._stop()  # those of other workers may wait for ever
            if self._state.counted < self._state.tries:
                self._failed(f"the job is {look.job}", status)
            if not self._state.outcome:
                self._start()

    def _start(self) -> None:
        if self._launcher.do("setup"):
            self._failed("setup failed", 1)
            return
        if self._has_come_on():  # as could not be seen when the slice before was taken away
            self._state.failures = 0
        self._state.starts += 1
        self._file.write(self._state)
        self._say(f"start {self._state.starts}")
        if self._launcher.do("run", "--", *self._state.command) not in (0, RUNNING_ALREADY):
            self._failed("the command could not be started", 1)

    def _stop(self) -> None:
        self._launcher.do("stop")

    def _failed(self, why: str, status: int) -> None:
        """Counts an end of the job, unless something came of it; waits before the next start."""
        came_on = self._has_come_on()
        self._state.failures = 0 if came_on else self._state.failures + 1
        self._state.counted = self._state.tries
        self._file.write(self._state)
        seen = {True: "it had come on", False: "without progress", None: "its workdir is not seen"}
        self._say(f"{why}; {seen[came_on]}")
        if status == MISTAKE:
            self._end("failed", MISTAKE)
        elif self._state.failures >= self._patience.failures:
            self._say(f"gives up after {self._state.failures} failures without progress")
            self._end("failed", status)
        else:
            patience = self._patience
            self._rest(min(patience.longest, patience.backoff * 2**self._state.failures))

    def _rest(self, seconds: float) -> None:
        """Waits, but not beyond the deadline."""
        if self._patience.hours:
            left = self._state.began + 3600 * self._patience.hours - self._clock()
            seconds = min(seconds, max(0.0, left) + 0.1)
        self._sleep(seconds)

    def _has_come_on(self) -> bool | None:
        """Whether anything has come since this was last asked; None if that cannot be seen."""
        now = self._progress()
        if now is None:
            return None
        best, self._state.best = self._state.best, now.joined(self._state.best)
        return now.is_beyond(best)

    def _progress(self) -> Progress | None:
        """How far the job has come; folders of hosts are seen by these, while they are there."""
        workdir = workdir_of(self._state.command)
        if not workdir:
            return None
        if "://" in workdir:
            return progress(workdir)
        if self._state.on == "local":
            return progress(str(ROOT / workdir))
        return self._launcher.progress(workdir) if self._is_there else None

    def _end(self, outcome: str, status: int) -> None:
        self._state.outcome, self._state.status = outcome, status
        self._file.write(self._state)

    def _give_back(self) -> None:
        """Logs come here and the slice goes; also when a process before this one could not."""
        self._say(f"{self._state.outcome} after {self._state.starts} starts")
        slice_state = self._launcher.look().slice
        if slice_state == "ABSENT":
            return
        if slice_state == "ACTIVE":
            self._launcher.do("logs")
        if self._keep:
            return
        for attempt in range(TRIES_TO_DELETE):
            if not self._launcher.do("delete"):
                return
            self._sleep(min(self._patience.longest, self._patience.backoff * 2**attempt))
        self._say("THE SLICE COULD NOT BE DELETED AND IS BILLED: delete it by hand")
        self._state.status = self._state.status or 1

    def _say(self, line: str) -> None:
        if line != self._said:
            print(f"{time.strftime('%H:%M:%S')} supervise: {line}", file=sys.stderr, flush=True)
        self._said = line


def place_of(on: str, flags: Sequence[str]) -> dict[str, str]:
    """Where a job is, from its flags and the environment."""
    given = {name: os.environ.get(name, "") for name in PLACE.get(on, ())}
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        if (variable := name.replace("-", "_").upper()) in given:
            given[variable] = value
    return given


def hear_signals() -> None:
    """SIGINT and SIGTERM raise KeyboardInterrupt, also where they were ignored at the start."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _show(launcher: Launcher, command: Sequence[str]) -> int:
    """What would be done for a job that nothing happens to; nothing is."""
    steps = (["create", "--wait=0"], ["setup"], ["run", "--", *command])
    return max(launcher.do(*step) for step in (*steps, ["status"], ["logs"], ["delete"]))


def head_commit() -> str:
    """The commit that is checked out.

    Raises:
        SystemExit: something is not committed, which a start after a preemption could not send.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"supervise: git: {done.stderr.strip()}")
        return done.stdout.strip()

    if git("status", "--porcelain", "--untracked-files=no"):
        raise SystemExit("supervise: there are uncommitted changes: commit them")
    return git("rev-parse", "HEAD")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses flags and looks after a job; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m launch.supervise",
        description="Keeps a job alive until it is done. Other flags go to the launch script.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--on", choices=KINDS, default="tpu", help="the launch script: launch/ON.sh")
    add("--job", default="job", help="name of the job")
    add("--state", type=Path, help="state file (runs/launch/JOB.json)")
    add("--keep", action="store_true", help="leave the slice at the end; it is billed")
    for field in dataclasses.fields(Patience):
        kind: Any = type(field.default)
        add(f"--{field.name}", type=kind, default=field.default, help="see Patience")
    known, flags = parser.parse_known_args(given[:cut])
    command = given[cut + 1 :]
    if wrong := [flag for flag in flags if not flag.startswith("--")]:
        parser.error(f"{wrong[0]!r} is no flag; what robustjax shall do comes after --")
    if not command:
        parser.error("what shall robustjax do? It comes after --")
    hear_signals()
    if os.environ.get("DRY_RUN") == "1":
        return _show(Launcher(known.on, [f"--job={known.job}", *flags]), command)
    file = StateFile(known.state or ROOT / "runs" / "launch" / f"{known.job}.json")
    flags = [f"--job={known.job}", *flags]
    state, place = file.read(), place_of(known.on, flags)
    if missing := [name for name, value in place.items() if not value]:
        parser.error(f"{missing[0]} is missing: export {missing[0]}=...")
    if state is None:
        commit = "" if known.on == "local" else head_commit()
        state = State(command, flags, known.on, commit, time.time(), place)
    elif (state.command, state.on) != (command, known.on):
        parser.error(f"{file.path} is of another command: give another --job or --state")
    elif state.place != place:  # nobody would delete that slice
        parser.error(f"the job of {file.path} is in {state.place}, not in {place}")
    state.flags = flags + ([f"--commit={state.commit}"] if state.commit else [])
    patience = Patience(**{f.name: getattr(known, f.name) for f in dataclasses.fields(Patience)})
    return Supervisor(file, state, patience, keep=known.keep).run()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("supervise: interrupted; the job goes on, and so does this command", file=sys.stderr)
        sys.exit(130)
