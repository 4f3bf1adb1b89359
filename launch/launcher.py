"""The launch scripts from Python: one call a verb, and how a slice and its job are."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("tpu", "gpu", "local")
NOBODY_ANSWERS = 124
"""Status of a call that took too long, as of the program `timeout`."""


class Look(NamedTuple):
    """How things are.

    Attributes:
        slice: `ACTIVE`, `ABSENT`, another state of a queued resource; `UNKNOWN` if nobody answers.
        job: `none`, `running`, `done`, `preempted`, `failed STATUS`, `lost`, `unreachable`; empty
            where there is no slice.
    """

    slice: str
    job: str = ""


class Launcher:
    """A launch script with its flags.

    Args:
        kind: of `KINDS`.
        flags: for every verb, as `--job=NAME`.
        seconds: how long a call may take; connections to hosts that are gone may never end.
    """

    def __init__(self, kind: str, flags: Sequence[str], seconds: float = 1800.0):
        self._script = ROOT / "launch" / f"{kind}.sh"
        self._flags = list(flags)
        self._seconds = seconds

    def do(self, verb: str, *arguments: str) -> int:
        """Does it, and returns the exit status; what the script says is passed on."""
        status, out = self._call(verb, *arguments)
        sys.stderr.write(out)
        return status

    def look(self) -> Look:
        """Asks how slice and job are."""
        said = dict(
            line.split(": ", 1)
            for line in self._call("status")[1].splitlines()
            if line.startswith(("slice: ", "job: "))
        )
        return Look(said.get("slice", "UNKNOWN"), said.get("job", ""))

    def progress(self, workdir: str) -> Progress | None:
        """How far a command has come in a workdir that its hosts see; None if they do not tell."""
        status, out = self._call("progress", f"--workdir={workdir}")
        if status or not out:
            return None
        try:
            return Progress(**json.loads(out.splitlines()[-1]))
        except (ValueError, TypeError):
            return None

    def _call(self, verb: str, *arguments: str) -> tuple[int, str]:
        process = subprocess.Popen(
            [self._script, verb, *self._flags, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its connections can be ended with it
        )
        try:
            out, _ = process.communicate(timeout=self._seconds)
            return process.returncode, out
        except subprocess.TimeoutExpired:
            return NOBODY_ANSWERS, ""
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
