"""Every annotation is one that can be checked as it runs, which ``make verify`` does."""

import pkgutil
import subprocess
import sys

import pytest

import robustjax

# A process of its own: only modules that are not yet imported are checked.
IMPORT = """
import importlib, sys
from jaxtyping import install_import_hook

with install_import_hook("robustjax", "beartype.beartype"):
    for name in sys.argv[1:]:
        importlib.import_module(name)
        print(name)
"""


@pytest.mark.slow
def test_every_module_imports_with_its_annotations_checked():
    names = [
        found.name
        for found in pkgutil.walk_packages(robustjax.__path__, "robustjax.")
        if not found.name.endswith("__main__")
    ]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == names
