"""A device without memory is told from other errors, and what helps is said."""

import subprocess
import sys

import pytest
from jax.errors import JaxRuntimeError

from robustjax import cli
from robustjax.runtime.shortage import memory_shortage

DISPATCH = "INTERNAL: Error dispatching computation: Out of memory allocating 26720073424 bytes."
ON_TPU = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm."
)


@pytest.mark.parametrize(
    ("error", "amount"),
    [(JaxRuntimeError(DISPATCH), "(26.7 GB "), (JaxRuntimeError(ON_TPU), ""), (MemoryError(), "")],
)
def test_what_helps_is_said(error, amount):
    said = memory_shortage(error)
    assert said.startswith("out of memory")
    assert amount in said
    assert "search.batch_size" in said
    outer = RuntimeError("something else")
    outer.__cause__ = error
    assert memory_shortage(outer) == said


@pytest.mark.parametrize(
    "error",
    [
        JaxRuntimeError("INVALID_ARGUMENT: shapes"),
        ValueError("Out of memory"),
        RuntimeError(),
        None,
    ],
)
def test_other_errors_are_none(error):
    assert memory_shortage(error) is None


def test_a_command_ends_with_one_line(monkeypatch, capsys):
    def fail(_):
        raise JaxRuntimeError(DISPATCH)

    monkeypatch.setitem(cli._COMMANDS, "attack", fail)
    assert cli.main(["attack"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("robustjax attack: out of memory (26.7 GB")


def test_errors_are_told_where_jax_cannot_be_imported():
    """A report runs there, and its own errors must not be hidden by an import that fails."""
    program = """
import sys

class NoJax:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib"):
            raise ImportError(name)

sys.meta_path.insert(0, NoJax())
from robustjax import cli

def fail(_):
    raise ValueError("of our own")

cli._COMMANDS["report"] = fail
cli.main(["report"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ValueError: of our own"
