"""`robustjax data`: what it lists, builds and shows, and what it refuses."""

import functools
import json
import re
import subprocess
import sys

import pytest

from robustjax.commands import data
from robustjax.data.tasks import FACTS, TASKS, TaskConfig, load_task
from tests.commands.short import ROOT
from tests.data.tasks.owners import STORED, write_files


@pytest.fixture
def run(run):
    """run(arguments...) -> status, stdout and stderr of `robustjax data`."""
    return functools.partial(run, "data")


@pytest.fixture
def mails(tmp_path):
    """The flags with which the task spam is built from small files."""
    folder = write_files("spam", tmp_path / "files")
    return [f"--data_dir={tmp_path / 'data'}", f"--manual_dir={folder}"]


def test_all_tasks_are_listed(run, mails, caplog):
    status, out, err = run("list", mails[0])
    assert (status, err, caplog.records) == (0, "", [])
    heading, *lines = out.splitlines()
    assert heading.split() == "task train validation classes data what is asked".split()
    assert [line.split()[0] for line in lines] == list(TASKS)
    states = {line.split()[0]: line for line in lines}
    assert all("not prepared" in states[name] for name in STORED)
    assert "generated" in states["password_match"] and "25,000" in states["password_match"]
    assert run("prepare", "--task=spam", *mails)[0] == 0
    now = {line.split()[0]: line for line in run("list", mails[0])[1].splitlines()[1:]}
    assert "not prepared" not in now["spam"] and "prepared" in now["spam"]
    for name in TASKS:  # a column may have become narrower
        assert (now[name].split() == states[name].split()) == (name != "spam")


def test_a_reader_may_stop_reading():
    command = [sys.executable, "-m", "robustjax", "data", "show", "--task=word_length", "--n=2000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as started:
        started.stdout.readline()
        started.stdout.close()
        assert (started.stderr.read(), started.wait()) == (b"", 0)


def test_a_task_is_prepared_once(run, mails, tmp_path):
    status, out, err = run("prepare", "--task=spam", *mails)
    assert status == 0
    assert out == f"{tmp_path / 'data' / 'spam' / '1.0.0'}\n"
    assert "data: spam train: 9 examples" in err and "data: spam validation: 5 examples" in err
    for path in (tmp_path / "files").iterdir():
        path.unlink()
    assert run("prepare", "--task=spam", *mails)[:2] == (0, out)


def test_spans_are_the_prompt_and_say_what_is_what(run, mails):
    status, out, _ = run("show", "--task=spam", "--n=2", "--color=never", *mails)
    assert status == 0
    _, *shown = re.split(r"^--- .*\n\n", out, flags=re.MULTILINE)
    data_dir = mails[0].removeprefix("--data_dir=")
    examples = load_task(TaskConfig("spam", data_dir=data_dir)).validation
    assert len(shown) == 2
    for text, example in zip(shown, examples, strict=False):
        found = re.findall(r"<(\w+)>(.*?)</\1>", text, flags=re.DOTALL)
        assert [kind for kind, _ in found] == ["instruction", "attackable", "slot", "answer"]
        assert "".join(part for kind, part in found if kind != "slot") == example.text


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_the_slot_is_where_the_attack_will_be(run, tmp_path, position):
    path = tmp_path / "mine.jsonl"
    rows = [{"text": "abcdefghij", "label": label} for label in (0, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task=jsonl", f"--validation_path={path}", "--n=1", "--color=never"]
    _, out, _ = run("show", *flags, f"--position={position}")
    text = re.sub(r"</?(attackable|instruction|answer)>", "", out.split("characters\n\n")[1])
    cut = int(10 * position)
    whole = "abcdefghij"
    assert text == f"{whole[:cut]}<slot>[attack]</slot>{whole[cut:]}\n\nAnswer:\n"


def test_a_replaced_chunk_and_the_words_before_it(run):
    _, out, _ = run("show", "--task=word_length", "--n=1", "--color=always", "--split=train")
    assert "\x1b[36mSay which of two words is longer" in out
    assert "\x1b[0mWord 1: passer\x1b[0m" in out and "\x1b[7;31m[attack]\x1b[0m" in out
    assert "--- word_length train 7702: 'FIRST', attacked toward 'SECOND', " in out


def test_a_text_cannot_steer_the_terminal(run, tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"text": "a\x1b]0;title\x07b\x9bc\u202e\td\ne", "label": label} for label in (0, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task=jsonl", f"--validation_path={path}", "--n=2"]
    for colour, number in (("never", 0), ("always", None), ("auto", 0)):
        _, out, _ = run("show", *flags, f"--color={colour}")
        painted = re.sub(r"\x1b\[[\d;]+m", "", out)
        assert number is None or painted == out
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(painted)
        assert r"a\x1b]0;title\x07b\x9bc\u202e" + "\td\ne" in painted


def test_colour_is_for_terminals_of_those_who_want_it(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert data.wants_colour("auto")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not data.wants_colour("auto") and data.wants_colour("always")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say one of list, prepare, show"),
        (["lst"], "say one of list, prepare, show"),
        (["list", "show"], "say one of list, prepare, show"),
        (["prepare"], "--task is missing; robustjax data list names the tasks"),
        (["prepare", "--task=jsonl"], f"--task=jsonl: choose one of {', '.join(FACTS)}"),
        (["prepare", "--task=spam", "--n=3"], "--n has no effect on robustjax data prepare"),
        (["list", "--task=spam"], "--task has no effect on robustjax data list"),
        (["show", "--task=spma"], "task 'spma' does not exist: choose one of"),
        (["show", "--task=word_length", "--n=0"], "--n=0: must be at least 1"),
        (["show", "--task=word_length", "--n=25001"], "task.num_validation=25001: .* has 25000"),
        (["show", "--task=word_length", "--position=1.5"], "--position=1.5: must lie in"),
        (["show", "--task=jsonl"], "task.validation_path is empty"),
        (["show", "--task=word_length", "--split=test"], "split"),
        (["show", "--task=word_length", "--num=3"], "Unknown command line flag 'num'"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert re.match(rf"robustjax data: .*{message}", line), line


def test_more_examples_than_there_are(run, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    _, _, err = run("show", "--task=jsonl", f"--validation_path={path}", "--n=3")
    assert "--n=3: task 'jsonl' has 2 validation examples" in err
    _, _, err = run("show", "--task=jsonl", f"--validation_path={path}", "--split=train")
    assert "has no train examples: set task.train_path" in err
