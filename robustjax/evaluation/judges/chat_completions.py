"""A judge behind an HTTP interface like OpenAI's: `POST URL/chat/completions`.

The prompt comes from a file of the user's, in which `{prompt}`, `{clean_prompt}`, `{output}` and
`{target}` are filled in. What can pass (no connection, a time-out, 408, 409, 429, 5xx, a body that
is no reply) is tried again with growing pauses; what the server has against a single question is
not; what holds for all of them (a wrong key, a redirection) stops the run at once. Replies are kept
on disk by the content of the question, so a run that goes on asks only what was never answered, and
one hopeless question costs none of the others.

The key is read from the environment when a question is sent. It is in no setting, record or file,
no message quotes what the server says, and a reply that repeats it is blotted out.
"""

import dataclasses
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from robustjax.errors import UserError
from robustjax.evaluation.judges.reply_file import ReplyFile
from robustjax.evaluation.judges.user_function import file_hash, load_function
from robustjax.evaluation.judges.verdict import Case, Verdict, verdict_of
from robustjax.runtime.progress import Progress

_PLACES = re.compile(r"\{(prompt|clean_prompt|output|target)\}")
_PASSING = {408, 409, 425, 429}
_OF_THE_QUESTION = {400, 413, 422}
_MOST_BYTES = 4 * 2**20
"""A reply longer than this is none."""
_LONGEST_PAUSE = 60.0
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_HIDDEN = "[key]"


@dataclasses.dataclass(frozen=True)
class HTTPJudgeConfig:
    """Where the judge is and how it is asked.

    Attributes:
        url: of the interface, up to `/chat/completions`, such as `https://HOST/v1`.
        model: the model that judges.
        prompt_file: the question, a text file with `{output}` in it.
        score: where the score stands in a reply: a regular expression whose first group is a number
            (its last match counts), or `FILE.py:function`, from a reply to a score or None.
        best_score: the number that means 1, for judges who count to 5 or 10.
        max_tokens: longest reply.
        key_variable: environment variable with the key; without it no key is sent.
        timeout_seconds: how long a reply may take.
        retries: how often a question is asked again.
        pause_seconds: before the first time; twice as long before each further one.
        workers: questions under way at once.
    """

    url: str = ""
    model: str = ""
    prompt_file: str = ""
    score: str = r"(?i)score\W*([0-9]*\.?[0-9]+)"
    best_score: float = 1.0
    max_tokens: int = 512
    key_variable: str = "OPENAI_API_KEY"
    timeout_seconds: float = 60.0
    retries: int = 5
    pause_seconds: float = 1.0
    workers: int = 4

    def __post_init__(self) -> None:
        for name in ("max_tokens", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("retries", "pause_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("best_score", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)} must be positive")


class _Lost(NamedTuple):
    """A question without a reply, and why."""

    reason: str


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Follows none: the key would go along, wherever it leads."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class ChatCompletions:
    """Asks a model over HTTP and reads a score from its reply."""

    def __init__(
        self,
        config: HTTPJudgeConfig,
        replies: Path,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Checks the settings; nothing is sent.

        Args:
            config: settings.
            replies: the file of replies.
            sleep: what waits.

        Raises:
            UserError: a setting is missing or cannot be used.
        """
        self._config, self._sleep = config, sleep
        self._replies = ReplyFile(replies)
        self._template = _read_template(config)
        self._check_url()
        self._parse = _parser(config)
        self._opener = urllib.request.build_opener(_NoRedirection)
        self.name = f"http:{config.model}"

    def leaves(self) -> dict[str, Any]:
        """Model, question and how a reply is read; not where the model runs."""
        config = self._config
        is_file = config.score.rpartition(":")[0].endswith(".py")
        return {
            "name": self.name,
            "prompt_sha256": hashlib.sha256(self._template.encode()).hexdigest(),
            "score": {"sha256": file_hash(config.score)} if is_file else config.score,
            "best_score": config.best_score,
            "max_tokens": config.max_tokens,
        }

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """Asks all questions, those with a known reply left out.

        Raises:
            UserError: some got no reply, after all others were asked; or none can be had.
        """
        bodies = [self._body(case) for case in cases]
        questions = [hashlib.sha256(body).hexdigest() for body in bodies]
        unknown = {
            question: body
            for question, body in zip(questions, bodies, strict=True)
            if self._replies.get(question) is None
        }
        lost = self._ask_all(unknown)
        if lost:
            raise UserError(
                f"judge {self.name}: {len(lost)} of {len(cases)} answers could not be judged "
                f"({lost[0].reason}); the replies that came are kept, and the same command asks "
                "for the others only"
            )
        replies = [self._replies.get(question) for question in questions]
        return [self._verdict(reply or "") for reply in replies]

    def _verdict(self, reply: str) -> Verdict:
        score = self._parse(reply)
        if isinstance(score, bool) or not isinstance(score, int | float):
            return verdict_of(score)
        return verdict_of(score / self._config.best_score)

    def _body(self, case: Case) -> bytes:
        values = case._asdict()
        # In one pass: an answer that spells a place is no place.
        content = _PLACES.sub(lambda place: values[place[1]], self._template)
        question = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        return json.dumps(question, sort_keys=True).encode("ascii")

    def _ask_all(self, questions: dict[str, bytes]) -> list[_Lost]:
        if not questions:
            return []
        with (
            Progress(len(questions), "judge", "answers", patience=3.0) as progress,
            ThreadPoolExecutor(self._config.workers) as pool,
        ):
            pending = [pool.submit(self._ask, *item) for item in questions.items()]
            lost = []
            try:
                for future in pending:
                    result = future.result()
                    lost += [] if result is None else [result]
                    progress.advance(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return lost

    def _ask(self, question: str, body: bytes) -> _Lost | None:
        """Asks until there is a reply, and keeps it; or says why there is none."""
        lost = _Lost("")
        for attempt in range(self._config.retries + 1):
            key = os.environ.get(self._config.key_variable, "")
            try:
                reply = self._send(body, key)
            except urllib.error.HTTPError as error:
                error.close()
                lost = _Lost(f"status {error.code}")
                if error.code in _OF_THE_QUESTION:
                    return lost
                if error.code not in _PASSING and error.code < 500:
                    raise UserError(
                        f"http_judge.url={self._config.url!r} answers with status {error.code}; "
                        f"check url, model, and the key in {self._config.key_variable}"
                    ) from None
                wait = _retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError) as error:
                # URLError and time-outs are OSErrors; a body that is no reply is a ValueError.
                lost, wait = _Lost(type(error).__name__), 0.0
            else:
                self._replies.add(question, reply.replace(key, _HIDDEN) if key else reply)
                return None
            if attempt < self._config.retries:
                pause = self._config.pause_seconds * 2**attempt
                self._sleep(min(max(pause, wait), _LONGEST_PAUSE))
        return lost

    def _send(self, body: bytes, key: str) -> str:
        url = self._config.url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        with self._opener.open(request, timeout=self._config.timeout_seconds) as response:
            data = response.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError("the reply is too long")
        try:
            reply = json.loads(data)["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ValueError("the body is no reply") from None
        if not isinstance(reply, str | None):
            raise ValueError("the reply is no text")
        return reply or ""

    def _check_url(self) -> None:
        url, config = urllib.parse.urlsplit(self._config.url), self._config
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(f"http_judge.url={config.url!r} is no address; use https://HOST/v1")
        if url.username or url.password or url.query:
            raise UserError(
                "http_judge.url holds a name, a password or a query, which would stand in the "
                f"manifest; put the key into the environment variable {config.key_variable}"
            )
        has_key = bool(os.environ.get(config.key_variable))
        if url.scheme == "http" and has_key and url.hostname not in _LOCAL:
            raise UserError(
                f"http_judge.url={config.url!r} would send the key in {config.key_variable} "
                "unencrypted; use https, or name another http_judge.key_variable"
            )


def _read_template(config: HTTPJudgeConfig) -> str:
    for name in ("url", "model", "prompt_file"):
        if not getattr(config, name):
            raise UserError(f"http_judge.{name} is empty; judge=http needs it")
    try:
        template = Path(config.prompt_file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"http_judge.prompt_file={config.prompt_file!r} cannot be read ({error}); give a text "
            "file in UTF-8"
        ) from error
    if "{output}" not in template:
        raise UserError(
            f"http_judge.prompt_file={config.prompt_file!r} has no {{output}} in it, where the "
            "victim's answer goes; put it in"
        )
    return template


def _parser(config: HTTPJudgeConfig) -> Callable[[str], Any]:
    """What reads the score from a reply; None where it finds none."""
    if config.score.rpartition(":")[0].endswith(".py"):
        function = load_function(config.score)

        def ask(reply: str) -> Any:
            try:
                return function(reply)
            except Exception:  # a reply that the user's function chokes on cannot be read
                return None

        return ask
    try:
        pattern = re.compile(config.score)
    except re.error as error:
        raise UserError(
            f"http_judge.score={config.score!r} is no regular expression ({error})"
        ) from error
    if not pattern.groups:
        raise UserError(f"http_judge.score={config.score!r} has no group; put the number into ( )")

    def last(reply: str) -> float | None:
        found = [match[1] for match in pattern.finditer(reply)]
        try:
            return float(found[-1]) if found else None
        except (TypeError, ValueError):
            return None

    return last


def _retry_after(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:  # a date
        return 0.0
