"""What two processes agree on, what each has of a batch, and one that does not come."""

import ast
from pathlib import Path

import pytest

from tests import processes
from tests.processes import Layout

pytestmark = pytest.mark.slow

ONE = str(Path(__file__).with_name("one_of_two.py"))


def run(mode, **options):
    two = Layout(2, 2)
    return processes.run([mode], two, programs={0: (ONE,), 1: (ONE,)}, **options)


def test_they_agree_and_each_has_its_rows():
    ended = run("agree")
    assert [one.status for one in ended] == [0, 0], ended
    first, second = ast.literal_eval(ended[0].out)
    assert first == {
        "split": [0, 1, 2, 3],
        "unsplit": [*range(8)],
        "odd": [*range(7)],
        "halves": [0, 1, 2],
    }
    assert second == {
        "split": [4, 5, 6, 7],
        "unsplit": [*range(8)],
        "odd": [*range(7)],
        "halves": [3, 4, 5],
    }
    assert ended[1].out == ""


def test_one_that_lives_but_does_not_come_is_named(monkeypatch):
    monkeypatch.setenv("ROBUSTJAX_STUCK_SECONDS", "4")
    waiting, stuck = run("stuck", lost_seconds=10)
    assert waiting.status == 75, waiting
    told = "process 1 of 2 did not come to 'the middle' within 4 s: it is stuck; start the same"
    assert told in waiting.err
    assert (stuck.status, told in stuck.err) == (75, True), stuck
