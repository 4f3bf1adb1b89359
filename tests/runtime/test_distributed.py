"""A single process starts nothing and waits for nobody; others start only when asked to."""

import jax
import pytest

from robustjax.runtime import distributed


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
    assert initialized == [{"num_processes": None, "process_id": None}]


def test_the_environment_asks(initialized, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    distributed.start()
    assert initialized == [{"num_processes": 2, "process_id": 1}]
    distributed.start(enabled=False)
    assert len(initialized) == 1


def test_does_not_start_twice(initialized, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    distributed.start(enabled=True)
    assert initialized == []


def test_other_processes_are_not_primary_and_wait(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "sync_global_devices", waited.append)
    assert not distributed.is_primary()
    distributed.barrier("round_1")
    assert waited == ["round_1"]
