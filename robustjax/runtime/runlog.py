"""The log of a run: metrics by step, and seconds kept apart from them.

Files that are compared between runs hold no wall-clock figures; those go to `timing.json`.
The other pieces of a run's log are re-exported here, so that a main needs one import.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from robustjax.errors import UserError
from robustjax.runtime.distributed import is_primary
from robustjax.runtime.event_file import EventFile
from robustjax.runtime.files import (
    StrPath,
    check_writable,
    is_remote,
    plain,
    read_json,
    write_json,
    write_text,
)
from robustjax.runtime.manifest import (
    config_hash,
    device_table,
    git_commit,
    versions,
    write_manifest,
)
from robustjax.runtime.progress import Progress, format_seconds

__all__ = [
    "MetricsLog",
    "Progress",
    "Stopwatch",
    "check_writable",
    "config_hash",
    "device_table",
    "format_seconds",
    "git_commit",
    "read_json",
    "read_metrics",
    "versions",
    "write_json",
    "write_manifest",
    "write_text",
]


class MetricsLog:
    """One JSON line per step, in a file that an interrupted run continues byte for byte.

    Each line reaches the operating system before `write` returns, so a killed process loses nothing
    it had logged. Never log wall-clock figures here. For watching, the numbers also go to
    TensorBoard's event files in the folder `tensorboard/` beside it. Of several processes of a run
    only the primary one writes.

    Args:
        path: the file, on a local disk (an object store cannot append).
        resume_at: the first step that will be written. Lines of this step and later ones, left by a
            run that was killed after its last checkpoint, are removed, and so is a torn last line.
            The default 0 starts afresh.

    Raises:
        UserError: the path is remote, or a line before the last one is not JSON.
    """

    def __init__(self, path: StrPath, resume_at: int = 0):
        if is_remote(path):
            raise UserError(
                f"{os.fspath(path)}: an object store cannot append; put metrics on a local disk"
            )
        self._file: TextIO | None = None
        kept: list[dict[str, Any]] = []
        if is_primary():
            kept = [line for line in _lines(path) if line["step"] < resume_at]
            write_text(path, "".join(_dump(line) for line in kept))
            self._file = open(path, "a", encoding="utf-8", newline="\n")
            self._events = EventFile(Path(path).parent / "tensorboard", max(resume_at, 0))
        self._last_line = kept[-1] if kept else {}
        self._last_step = self._last_line.get("step", -1)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Appends a line; steps never go back, and NaN becomes null."""
        if step < self._last_step:
            raise ValueError(f"step {step} comes after step {self._last_step}; steps never go back")
        if "step" in metrics:
            raise ValueError("metrics may not hold the key 'step'; it is the first argument")
        self._last_step = step
        values = plain(metrics)
        self._last_line = {"step": step} | values
        if self._file is None:
            return
        self._file.write(_dump(self._last_line))
        self._file.flush()
        numbers = {name: x for name, x in values.items() if isinstance(x, int | float)}
        self._events.write(step, numbers)

    def write_once(self, step: int, metrics: dict[str, Any]) -> None:
        """Appends a line unless it is the last one already, from before a kill."""
        if {"step": step} | plain(metrics) != self._last_line:
            self.write(step, metrics)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
            self._events.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _dump(line: dict[str, Any]) -> str:
    # Keys in the order given: a line reads better with the step first, and it is deterministic too.
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def read_metrics(path: StrPath) -> list[dict[str, Any]]:
    """Reads the lines of a `MetricsLog`, without a torn last one.

    Raises:
        UserError: the file is missing, or another line than the last is not JSON.
    """
    if not Path(path).is_file():
        raise UserError(f"{os.fspath(path)}: no such file; check the path")
    return _lines(path)


def _lines(path: StrPath) -> list[dict[str, Any]]:
    if not Path(path).exists():
        return []
    # A kill can cut a multi-byte character of the last line in half, so decode line by line.
    *whole, _torn = Path(path).read_bytes().split(b"\n")
    parsed = []
    for number, line in enumerate(whole, start=1):
        try:
            parsed.append(json.loads(line))
            parsed[-1]["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(whole) and not _torn:  # a torn write that happens to end in a newline
                return parsed[: number - 1]
            raise UserError(
                f"{os.fspath(path)}: line {number} is not a line of a metrics log ({error!r}); "
                "delete the file, or use another --workdir"
            ) from error
    return parsed


class Stopwatch:
    """Adds up seconds by name and writes them to `timing.json`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time spent in the block to `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def write(self, folder: StrPath, **more: float | int | None) -> None:
        """Writes `timing.json`: each measured name, and `more` figures by name."""
        write_json(f"{os.fspath(folder)}/timing.json", self.seconds | more)
