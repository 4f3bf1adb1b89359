"""Tasks are built and read where TensorFlow cannot be imported, and nothing tries to import it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.tasks.owners import SIZES, STORED, write_files

ROOT = Path(__file__).parents[3]
PROGRAM = """
import builtins
import json
import sys

tried = []
really_import = builtins.__import__


def watched(name, *args, **kwargs):
    if name.partition(".")[0] in ("tensorflow", "jax"):
        tried.append(name)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return really_import(name, *args, **kwargs)


builtins.__import__ = watched
name, data_dir, manual_dir = sys.argv[1:]

import dataclasses
import importlib

from robustjax.data.tasks import TaskConfig, load_task

builder = importlib.import_module(f"robustjax.data.tasks.{name}.builder").Builder
unpinned = lambda source: dataclasses.replace(source, sha256="")
builder.SOURCES = {key: unpinned(source) for key, source in builder.SOURCES.items()}
for where in ({"manual_dir": manual_dir}, {}):  # built, then read
    task = load_task(TaskConfig(name, data_dir=data_dir, **where))
assert "tensorflow_datasets" in sys.modules and not {"tensorflow", "jax"} & set(sys.modules)
print(json.dumps({"sizes": [len(task.train), len(task.validation)], "tried": tried}))
"""


@pytest.mark.parametrize("name", STORED)
def test_a_task_without_tensorflow(name, tmp_path):
    folder = write_files(name, tmp_path / "files")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(tmp_path / "data"), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["sizes"] == [SIZES[name].get(split, 0) for split in ("train", "validation")]
    assert found["tried"] == []
