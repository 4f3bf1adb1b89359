"""Judges: what a generated answer means to an attacker. By name, from a file, or over HTTP."""

import dataclasses
from pathlib import Path
from typing import Any

from robustjax.errors import UserError
from robustjax.evaluation.judges.chat_completions import ChatCompletions, HTTPJudgeConfig
from robustjax.evaluation.judges.prefixes import ExactTarget, RefusalPrefix
from robustjax.evaluation.judges.user_function import UserFunction, is_function
from robustjax.evaluation.judges.verdict import Case, Judge, Verdict

__all__ = ["NAMED", "Case", "HTTPJudgeConfig", "Judge", "Verdict", "make_judge"]

NAMED: dict[str, Any] = {one.name: one for one in (ExactTarget, RefusalPrefix)}
"""Judges that need no settings."""

HTTP = "http"


def make_judge(name: str, http: HTTPJudgeConfig, folder: Path) -> Judge:
    """The judge that a setting names, checked before anything is computed.

    Args:
        name: one of `NAMED`, `http`, or `FILE.py:function`.
        http: settings of the judge `http`.
        folder: where that one keeps the replies it got.

    Raises:
        UserError: there is no such judge, or its settings do not do.
    """
    if name == HTTP:
        return ChatCompletions(http, folder / "judge_replies.jsonl")
    if http != HTTPJudgeConfig():
        changed = next(
            field.name
            for field in dataclasses.fields(http)
            if getattr(http, field.name) != field.default
        )
        raise UserError(f"http_judge.{changed} has no effect with judge={name!r}; set judge=http")
    if name in NAMED:
        judge: Judge = NAMED[name]()
        return judge
    if is_function(name):
        return UserFunction(name)
    raise UserError(
        f"judge={name!r} is unknown; use {', '.join(NAMED)}, {HTTP}, or FILE.py:function"
    )
