"""Adversarial training goes on within a round, after a kill, a preemption or damage."""

import jax
import pytest

from robustjax import load_victim
from robustjax.errors import UserError
from robustjax.evaluation import records
from robustjax.runtime import interrupts
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.runlog import read_json, read_metrics
from robustjax.training.rounds import records_path, round_folder
from tests.training.conftest import same_bits
from tests.training.hardening import LONG, Run


@pytest.fixture(scope="module")
def long(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    victim, summary = run(folder, LONG)
    return Run(folder, victim, summary, [], [])


def assert_like(long, folder, result):
    victim, summary = result
    assert same_bits(victim.params, long.victim.params) and summary == long.summary
    assert newest_metadata(folder) == newest_metadata(long.folder)
    files = sorted(path.relative_to(long.folder) for path in long.folder.rglob("*.jsonl"))
    assert len(files) == 3  # of two rounds, and the metrics
    for file in files:
        assert (folder / file).read_bytes() == (long.folder / file).read_bytes(), file


def newest_metadata(folder):
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return newest.name, read_json(newest / "metadata.json")


# Within a round's first pass, at its end, at that of the second, in the next round, and at the end.
@pytest.mark.parametrize("n", [1, 3, 6, 8, 12])
def test_killed_at_an_update_and_resumed_is_the_same_as_straight(run, long, killed_at, tmp_path, n):
    with killed_at(Checkpoints, "save", n):
        run(tmp_path, LONG)
    assert_like(long, tmp_path, run(tmp_path, LONG))


# It looks once between rounds; in an attack after each of two iterations of two batches and after
# each batch; then after each update, and between two passes.
@pytest.mark.parametrize("n", [1, 2, 4, 6, 8, 11, 16])
def test_preempted_it_saves_and_goes_on_where_it_was(run, long, tmp_path, monkeypatch, n):
    """The n-th time that it looks; what was done by then is not done again."""
    with monkeypatch.context() as patch:
        looks = iter(range(1, n + 1))
        patch.setattr(interrupts, "is_preempted", lambda: next(looks, n) == n)
        with pytest.raises(interrupts.PreemptedError):
            run(tmp_path, LONG)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    steps = sum("loss" in line for line in read_metrics(tmp_path / "metrics.jsonl"))
    saved = Checkpoints(tmp_path / "checkpoints").latest_step() or 0
    assert saved == steps
    assert (tmp_path / "rounds/001/attacks/gcg/attack_state.npz").exists() == (n in (2, 6))
    if n in (2, 4, 6):  # it was left within a batch, or after the first one
        found = records.read_complete_records(records_path(tmp_path, 1, "gcg"))
        assert len(found) == {2: 0, 4: 2, 6: 2}[n]
    assert_like(long, tmp_path, run(tmp_path, LONG))
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(run, long, killed_at, tmp_path, caplog):
    with killed_at(Checkpoints, "save", 6):
        run(tmp_path, LONG)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000004", "00000005"]
    for path in (tmp_path / "checkpoints" / names[1] / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * path.stat().st_size)
    result = run(tmp_path, LONG)
    assert f"checkpoint {tmp_path}/checkpoints/00000005: " in caplog.text
    assert "trying the one before it" in caplog.text
    assert_like(long, tmp_path, result)


def change(path):
    path.write_bytes(path.read_bytes().replace(b"true", b"True", 1))


@pytest.mark.parametrize(
    ("harm", "what"), [(change, "was changed"), (lambda path: path.unlink(), "is missing")]
)
def test_texts_that_are_not_those_of_the_pool_are_refused(run, killed_at, tmp_path, harm, what):
    with killed_at(Checkpoints, "save", 3):
        run(tmp_path, LONG)
    path = records_path(tmp_path, 1, "gcg")
    harm(path)
    with pytest.raises(UserError, match=rf"{path} {what} since round 1 was trained on it; put it"):
        run(tmp_path, LONG)


def test_every_round_is_evaluated_once_whatever_happens(run, killed_at, tmp_path):
    calls = []

    def evaluate(number, victim, flops):
        calls.append((number, flops, jax.device_get(victim.params)))
        return {"breaks": 0.5 + number}

    with killed_at(Checkpoints, "save", 3):  # within round 1: it went on from before it
        run(tmp_path, LONG, evaluate=evaluate)
    with killed_at(Checkpoints, "save", 5):  # round 1 is evaluated; round 2 is not saved
        run(tmp_path, LONG, evaluate=evaluate)
    assert [call[0] for call in calls] == [0, 1]
    with killed_at(Checkpoints, "save", 2):  # within round 2
        run(tmp_path, LONG, evaluate=evaluate)
    assert [call[0] for call in calls] == [0, 1, 1]  # it skips itself what it did before
    _, summary = run(tmp_path, LONG, evaluate=evaluate)
    assert [call[0] for call in calls] == [0, 1, 1, 2]
    spent = [0, *(row["flops_total"] for row in summary["rounds"])]
    assert [call[1] for call in calls] == [spent[number] for number, *_ in calls]
    assert same_bits(calls[1][2], calls[2][2])
    for number in (1, 2):
        assert same_bits(load_victim(round_folder(tmp_path, number)).params, calls[1 + number][2])
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "breaks" in line]
    expected = [{"step": 6 * n, "round": n, "breaks": 0.5 + n} for n in (0, 1, 2)]
    assert lines == expected
