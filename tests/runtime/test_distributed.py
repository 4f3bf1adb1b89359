"""A single process starts nothing and waits for nobody; others start only when asked to."""

import jax
import pytest

from robustjax.errors import UserError
from robustjax.runtime import distributed

PATIENCE = {"heartbeat_timeout_seconds": 240}  # longer than ours, so that our message comes first


@pytest.fixture
def initialized(monkeypatch):
    """Catches the arguments that `jax.distributed.initialize` would get."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: calls.append(kwargs))
    for name in (
        "ROBUSTJAX_DISTRIBUTED",
        "JAX_COORDINATOR_ADDRESS",
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_single_process_does_not_start_anything(initialized):
    distributed.start()
    assert initialized == []
    assert distributed.is_primary()
    distributed.barrier("alone")


def test_starts_when_asked(initialized):
    distributed.start(enabled=True)
    assert initialized == [{"num_processes": None, "process_id": None} | PATIENCE]


def test_the_environment_asks(initialized, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    distributed.start()
    assert initialized == [{"num_processes": 2, "process_id": 1} | PATIENCE]
    distributed.start(enabled=False)
    assert len(initialized) == 1


def test_does_not_start_twice(initialized, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    distributed.start(enabled=True)
    assert initialized == []


def test_a_tpu_slice_of_several_hosts_asks_unless_told_otherwise(initialized, monkeypatch):
    monkeypatch.setattr(distributed, "_is_on_a_pod", lambda: True)
    monkeypatch.setenv("ROBUSTJAX_DISTRIBUTED", "0")
    distributed.start()
    assert initialized == []
    monkeypatch.delenv("ROBUSTJAX_DISTRIBUTED")
    distributed.start()
    assert initialized == [{"num_processes": None, "process_id": None} | PATIENCE]


def test_a_cpu_is_no_pod():
    assert not distributed._is_on_a_pod()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_PROCESS_ID", "one", "JAX_PROCESS_ID='one' is not a number"),
        ("ROBUSTJAX_LOST_SECONDS", "0", "ROBUSTJAX_LOST_SECONDS='0' is not a number of seconds"),
        ("ROBUSTJAX_STUCK_SECONDS", "x", "ROBUSTJAX_STUCK_SECONDS='x' is not a number of seconds"),
    ],
)
def test_a_wrong_variable_is_named(initialized, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.start(enabled=True)
    assert initialized == []


def test_processes_that_do_not_come_together_are_told(monkeypatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(
        UserError, match=r"do not come together \(DEADLINE_EXCEEDED: nobody there\)"
    ):
        distributed.start(enabled=True)


def test_alone_everything_is_at_once():
    assert distributed.from_primary(lambda: 3, "three") == 3
    assert distributed.everyones("me", "names") == ["me"]
    distributed.end(1, "whatever")
    distributed.fail(ValueError())
