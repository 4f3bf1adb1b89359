"""One model that `robustjax finetune` trained, and commands that are called as a user does."""

import json
import sys

import pytest

from robustjax.cli import main
from tests.commands.short import FINETUNE, ROOT, TRAINING


@pytest.fixture(autouse=True)
def no_cache_beside_results(monkeypatch):
    """Tests share one cache of compiled programs; the command would set another for good."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))


@pytest.fixture
def run(capsys, monkeypatch):
    """run(command, arguments...) -> status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the one before
        status = main(list(map(str, arguments)))
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(run, tmp_path):
    """refused(arguments...) -> the one line with which the command refuses them."""

    def call(*arguments, workdir=tmp_path / "untouched"):
        status, out, err = run(*arguments, f"--workdir={workdir}")
        assert (status, out) == (2, ""), err
        *_, line = err.splitlines()
        assert line.startswith(f"robustjax {arguments[0]}: ") and "Traceback" not in err
        assert not (tmp_path / "untouched").exists() or workdir != tmp_path / "untouched"
        return line

    return call


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture
def trained(run, folders):
    """The workdir of a training; each process makes it once."""
    workdir = folders / "trained"
    if not (workdir / "DONE").exists():
        arguments = f"{FINETUNE}:point=nano-27k,task=word_length", *TRAINING
        status, out, err = run("finetune", *arguments, f"--workdir={workdir}")
        assert (status, out) == (0, f"{workdir}\n"), err
        assert "finetune nano-27k: 6/6 steps" in err
    return workdir


def read(path):
    return json.loads(path.read_text())


def contents(folder):
    """The bytes of every file that is compared between runs, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timing.json"
    }
