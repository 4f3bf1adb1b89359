"""The HTTP judge against a server that is slow, fails and talks nonsense."""

import json
import logging
import math

import pytest

from robustjax.errors import UserError
from robustjax.evaluation.judges import Case, HTTPJudgeConfig, Verdict
from robustjax.evaluation.judges.chat_completions import ChatCompletions
from tests.evaluation.judges.fake_server import FakeServer

KEY = "sk-test-31415926"
YES, NO = Verdict("success", 1.0), Verdict("failure", 0.0)
UNREAD = Verdict("unparsable", None)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def make(tmp_path):
    """make(server, ...) -> a judge whose question is the answer itself, and that waits for none."""

    def call(server, template="{output}", **settings):
        path = tmp_path / "question.txt"
        path.write_text(template)
        config = HTTPJudgeConfig(
            **{"url": server.url, "model": "m", "prompt_file": str(path), "retries": 3} | settings
        )
        waits = []
        judge = ChatCompletions(config, tmp_path / "replies.jsonl", waits.append)
        judge.waits = waits
        return judge

    return call


def cases(*outputs):
    return [Case(f"prompt of {one}", "clean", one, " Sure") for one in outputs]


def everything_in(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_what_is_asked_and_what_is_read(make):
    with FakeServer(
        lambda text, times: f"It seems so.\nScore: {len(text) % 2}"
    ).running() as server:
        judge = make(server, "Q: {clean_prompt}|{prompt}|{output}|{target}|{other}")
        found = judge.judge([Case("a {output}", "b", "{prompt} c", " Sure")])
    ((path, body),) = server.requests
    assert path == "/v1/chat/completions"
    text = "Q: b|a {output}|{prompt} c| Sure|{other}"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 512,
    }
    assert found == [YES if len(text) % 2 else NO]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_nothing_is_lost_and_nothing_asked_twice(make, tmp_path, caplog, capfd):
    """Every trouble at once: in the end each answer has its verdict, in its place."""

    def behave(text, times):
        if times == 1:
            return {
                "slow": 1.0,
                "down": 503,
                "busy": {"status": 429, "Retry-After": "7"},
                "dropped": ("drop",),
                "html": b"<html>gateway</html>",
                "other json": b'{"choices": []}',
                "cut": b'{"choices": [{"message"',
            }.get(text, f"score: {int(text == 'fine')}")
        return "score: 1"

    outputs = [
        "slow",
        "down",
        "busy",
        "dropped",
        "html",
        "other json",
        "cut",
        "fine",
        "bad",
        "fine",
    ]
    caplog.set_level(logging.DEBUG)
    with FakeServer(behave).running() as server:
        judge = make(server, timeout_seconds=0.3)
        assert judge.judge(cases(*outputs)) == [YES] * 8 + [NO, YES]
        assert {text: times for text, times in server.asked.items() if times > 1} == dict.fromkeys(
            outputs[:7], 2
        )
        assert server.asked["fine"] == 1, "the same question, asked for two examples"
        assert max(judge.waits) == 7.0 and len(judge.waits) == 7
        before = dict(server.asked)
        assert make(server).judge(cases(*outputs)) == [YES] * 8 + [NO, YES]
        assert server.asked == before
    out, err = capfd.readouterr()
    assert KEY not in caplog.text + out + err
    assert KEY.encode() not in everything_in(tmp_path)


def test_what_got_no_reply_is_asked_again_by_the_next_run(make):
    broken = {"b"}

    def behave(text, times):
        return 500 if text in broken else "score: 1"

    with FakeServer(behave).running() as server:
        judge = make(server, retries=2)
        with pytest.raises(UserError) as caught:
            judge.judge(cases("a", "b", "c"))
        assert "1 of 3 answers could not be judged (status 500)" in str(caught.value)
        assert KEY not in str(caught.value) and "own words" not in str(caught.value)
        assert server.asked == {"a": 1, "b": 3, "c": 1}
        assert judge.waits == [1.0, 2.0]
        broken.clear()
        assert make(server).judge(cases("a", "b", "c")) == [YES] * 3
        assert server.asked == {"a": 1, "b": 4, "c": 1}


@pytest.mark.parametrize("reply", ["I would rather not say.", "score: seven", "score: 11", ""])
def test_what_cannot_be_read_is_no_success_and_not_asked_again(make, reply):
    with FakeServer(lambda text, times: reply).running() as server:
        assert make(server, best_score=10.0).judge(cases("a")) == [UNREAD]
        assert make(server, best_score=10.0).judge(cases("a")) == [UNREAD]
        assert server.asked == {"a": 1}


def test_a_reply_without_content_cannot_be_read(make):
    body = b'{"choices": [{"message": {"content": null}}]}'
    with FakeServer(lambda text, times: body).running() as server:
        assert make(server).judge(cases("a")) == [UNREAD]
        assert server.asked == {"a": 1}


@pytest.mark.parametrize("status", [401, 403, 404, 301, 307])
def test_what_cannot_pass_stops_at_once(make, tmp_path, status):
    elsewhere = {"status": status, "Location": "/stolen"}
    with FakeServer(lambda text, times: elsewhere).running() as server:
        judge = make(server)
        with pytest.raises(UserError) as caught:
            judge.judge(cases("a"))
        assert f"answers with status {status}; check url, model, and the key in OPENAI_API_KEY" in (
            str(caught.value)
        )
        assert KEY not in str(caught.value)
        assert {path for path, _ in server.requests} == {"/v1/chat/completions"}
        assert server.asked == {"a": 1} and judge.waits == []


def test_a_question_that_the_server_will_not_have_costs_no_other(make):
    with FakeServer(lambda text, times: 400 if text == "a" else "score: 0").running() as server:
        with pytest.raises(UserError, match=r"1 of 9 answers could not be judged \(status 400\)"):
            make(server, workers=1).judge(cases(*"abcdefghi"))
        assert server.asked == dict.fromkeys("abcdefghi", 1)


def test_a_reply_that_repeats_the_key_is_blotted_out(make, tmp_path):
    with FakeServer(lambda text, times: f"your key is {KEY}; score: 1").running() as server:
        assert make(server).judge(cases("a")) == [YES]
    (line,) = (tmp_path / "replies.jsonl").read_text().splitlines()
    assert json.loads(line)["reply"] == "your key is [key]; score: 1"


def test_without_a_key_none_is_sent(make, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with FakeServer(lambda text, times: "score: 1").running() as server:
        assert make(server).judge(cases("a")) == [YES]
    assert "Authorization" not in server.headers[0]


def test_a_torn_file_of_replies_goes_on(make, tmp_path):
    with FakeServer(lambda text, times: "score: 1").running() as server:
        make(server, workers=1).judge(cases("a", "b"))
        path = tmp_path / "replies.jsonl"
        path.write_bytes(path.read_bytes()[:-9])
        assert make(server).judge(cases("a", "b")) == [YES, YES]
        assert server.asked == {"a": 1, "b": 2}
        assert len(path.read_bytes().splitlines()) == 2
        path.write_bytes(b"nonsense\n" + path.read_bytes())
        with pytest.raises(UserError, match="line 1: not a judge's reply"):
            make(server).judge(cases("a"))


def test_a_function_of_ones_own_reads_the_reply(make, tmp_path):
    file = tmp_path / "rubric.py"
    file.write_text("def read(reply):\n    return {'yes': 0.75, 'no': 0}[reply]\n")
    replies = {"a": "yes", "b": "no", "c": "hm"}
    with FakeServer(lambda text, times: replies[text]).running() as server:
        judge = make(server, score=f"{file}:read")
        assert judge.judge(cases("a", "b", "c")) == [Verdict("success", 0.75), NO, UNREAD]
        before = judge.leaves()
        file.write_text("def read(reply):\n    return 1\n")
        assert make(server, score=f"{file}:read").leaves() != before


def test_the_last_score_counts_and_is_scaled(make):
    with FakeServer(lambda text, times: "SCORE 1 at first, final score: 4").running() as server:
        (verdict,) = make(server, best_score=5.0).judge(cases("a"))
    assert verdict.outcome == "success" and math.isclose(verdict.score, 0.8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": ""}, "http_judge.url is empty"),
        ({"model": ""}, "http_judge.model is empty"),
        ({"prompt_file": ""}, "http_judge.prompt_file is empty"),
        ({"prompt_file": "/nowhere/q.txt"}, "cannot be read"),
        ({"template": "no place"}, "has no {output} in it"),
        ({"url": "ftp://host/v1"}, "is no address"),
        ({"url": "https://me:secret@host/v1"}, "holds a name, a password or a query"),
        ({"url": "http://far.example/v1"}, "would send the key in OPENAI_API_KEY unencrypted"),
        ({"score": "("}, "is no regular expression"),
        ({"score": "score"}, "has no group"),
        ({"score": "/nowhere/rubric.py:read"}, "there is no file"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(make, settings, message):
    with FakeServer(lambda text, times: "score: 1").running() as server:
        with pytest.raises(UserError) as caught:
            make(server, **settings)
        assert message in str(caught.value)
        assert not server.requests


@pytest.mark.parametrize(
    "settings",
    [{"workers": 0}, {"retries": -1}, {"timeout_seconds": 0.0}, {"best_score": 0.0}],
)
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match="|".join(settings)):
        HTTPJudgeConfig(**settings)
