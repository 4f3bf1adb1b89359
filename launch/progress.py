"""How far a command has come, from the files in its workdir alone.

`python -m launch.progress WORKDIR` tells it as JSON, on hosts that alone see a workdir.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

MARKERS = ("DONE", "COMPLETE.json")
"""What a finished stage and a whole checkpoint have."""

_LINE = re.compile(r"\s*(\d+)\s+(\S+)\s+(gs://.*)")


@dataclasses.dataclass(frozen=True)
class Progress:
    """What only grows while a command gets on.

    A command that is killed at the same place again and again leaves the same figures again.

    Attributes:
        marked: finished stages and whole checkpoints.
        written: bytes of records and metrics.
        saved: when the search that is being done was saved last; as text that can be compared.
    """

    marked: int = 0
    written: int = 0
    saved: str = ""

    def is_beyond(self, other: "Progress") -> bool:
        """Whether anything has come since."""
        return (
            self.marked > other.marked or self.written > other.written or self.saved > other.saved
        )

    def joined(self, other: "Progress") -> "Progress":
        """The most of both: checkpoints go when newer ones come."""
        return Progress(
            max(self.marked, other.marked),
            max(self.written, other.written),
            max(self.saved, other.saved),
        )


def workdir_of(command: Sequence[str]) -> str:
    """The workdir in the flags of a command; empty if there is none."""
    for index, word in enumerate(command):
        name, has_value, value = word.partition("=")
        if name in ("--workdir", "-workdir"):
            return value if has_value else "".join(command[index + 1 : index + 2])
    return ""


def progress(workdir: str) -> Progress:
    """How far the command of a workdir has come; nothing if there is no such folder yet.

    Args:
        workdir: local or `gs://`.
    """
    found = Progress()
    for name, size, when in _remote(workdir) if "://" in workdir else _local(Path(workdir)):
        found = Progress(
            found.marked + (name in MARKERS),
            found.written + (size if name.endswith(".jsonl") else 0),
            max(found.saved, when if name == "attack_state.npz" else ""),
        )
    return found


def is_done(workdir: str) -> bool:
    """Whether a command finished in a workdir."""
    if "://" not in workdir:
        return (Path(workdir) / "DONE").is_file()
    return any(True for _ in _remote(f"{workdir}/DONE"))


def _local(folder: Path) -> Iterator[tuple[str, int, str]]:
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.stat(f"{place}/{name}")
            except FileNotFoundError:
                continue  # it was just deleted
            yield name, stat.st_size, f"{stat.st_mtime_ns:020d}"


def _remote(folder: str) -> Iterator[tuple[str, int, str]]:
    """Lines of gcloud: size, time of the last change, address."""
    try:
        listed = subprocess.run(
            ["gcloud", "storage", "ls", "--long", "--recursive", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a folder that is not there yet is no error
            text=True,
        )
    except FileNotFoundError:  # no gcloud: GPU hosts do without
        return
    for line in listed.stdout.splitlines():
        match = _LINE.fullmatch(line)
        if match and "/_mirror/" not in match[3]:  # what a mirror puts down for a moment
            yield match[3].rsplit("/", 1)[1], int(match[1]), match[2]


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(progress(sys.argv[1]))))
