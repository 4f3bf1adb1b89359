"""A judge of one's own: a function in a Python file."""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustjax.errors import UserError
from robustjax.evaluation.judges.verdict import Case, Verdict, verdict_of

_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


def is_function(name: str) -> bool:
    """Whether a setting has the form `FILE.py:function`."""
    return _FUNCTION.fullmatch(name) is not None


def load_function(setting: str) -> Callable[..., Any]:
    """The function that `FILE.py:function` names.

    Raises:
        UserError: the file cannot be run, or has no such function.
    """
    match = _FUNCTION.fullmatch(setting)
    if match is None:
        raise UserError(f"{setting!r} names no function; use FILE.py:function")
    path = Path(match["file"]).expanduser()
    spec = importlib.util.spec_from_file_location(f"judge_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{setting!r}: there is no file {path}; give FILE.py:function")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    function = getattr(module, match["name"], None)
    if not callable(function):
        raise UserError(f"{path} has no function {match['name']!r}; name one that it has")
    return function


def file_hash(setting: str) -> str:
    """The sha256 of the file that `FILE.py:function` names."""
    return hashlib.sha256(Path(setting.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()


class UserFunction:
    """Asks `function(prompt, clean_prompt, output)` for a score from 0 to 1, or a truth value."""

    def __init__(self, setting: str):
        """Loads the function.

        Args:
            setting: `FILE.py:function`.

        Raises:
            UserError: there is no such function.
        """
        self._function, self._setting = load_function(setting), setting
        self.name = f"{Path(setting.rpartition(':')[0]).name}:{setting.rpartition(':')[2]}"

    def leaves(self) -> dict[str, Any]:
        """Its name, and the content of its file."""
        return {"name": self.name, "sha256": file_hash(self._setting)}

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """Asks the function, case by case.

        Raises:
            UserError: it raised an exception.
        """
        try:
            return [
                verdict_of(self._function(case.prompt, case.clean_prompt, case.output))
                for case in cases
            ]
        except Exception as error:  # whatever the user's function raises
            raise UserError(
                f"judge {self._setting} raised {type(error).__name__}: {error}; mend it, or let it "
                "return None for an answer that it cannot judge"
            ) from error
