"""Replies that were paid for, on disk: a question that was answered once is never asked again."""

import json
import os
import threading
from pathlib import Path

from robustjax.errors import UserError


class ReplyFile:
    """A file with a JSON object a line, `{"question": sha256, "reply": text}`; threads share it."""

    def __init__(self, path: Path):
        """Nothing is read or written yet."""
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, str] | None = None

    def get(self, question: str) -> str | None:
        """The reply to a question, if there was one.

        Raises:
            UserError: the file is damaged.
        """
        with self._lock:
            return self._load().get(question)

    def add(self, question: str, reply: str) -> None:
        """Keeps a reply; on return it is on the disk."""
        line = json.dumps({"question": question, "reply": reply}, sort_keys=True) + "\n"
        with self._lock:
            self._load()[question] = reply
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as file:
                file.write(line.encode("ascii"))
                file.flush()
                os.fsync(file.fileno())

    def _load(self) -> dict[str, str]:
        if self._known is None:
            data = self._path.read_bytes() if self._path.exists() else b""
            whole, _, torn = data.rpartition(b"\n")
            if torn:  # the process was killed while it wrote
                os.truncate(self._path, len(data) - len(torn))
            self._known = {}
            for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
                try:
                    entry = json.loads(line)
                    self._known[entry["question"]] = entry["reply"]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{self._path}, line {number}: not a judge's reply; delete the line"
                    ) from error
        return self._known
