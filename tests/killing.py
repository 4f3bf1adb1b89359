"""Commands as processes that are killed, and what is the same in the folders that they leave."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from tests.compiling import QUICKLY

ROOT = Path(__file__).parents[1]
DIE_AT = str(ROOT / "tests" / "die_at.py")


def move_results(workdir, aside):
    aside.mkdir()
    for path in workdir.iterdir():
        if path.name != "xla_cache":
            path.rename(aside / path.name)


def start(*program, command, config, workdir, cores=None, flags=()):
    """A command as a process of its own, with the compiled programs kept in the workdir.

    Args:
        program: what python runs: `-m robustjax`, or the script that dies.
        command: `study`, `advtrain` and so on.
        config: file of the config, relative to the project, with its arguments.
        workdir: the workdir.
        cores: the cores that it may use; None for all.
        flags: further flags.
    """
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.Popen(
        [
            sys.executable,
            *program,
            command,
            f"--config={ROOT / config}",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=ROOT,
        env=env | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)),
    )


def differences(one, other):
    """Names of what is not the same, bit for bit, in two workdirs; compiled programs left out."""
    found, expected = contents(other), contents(one)
    return sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )


def contents(workdir):
    found = {}
    # Somebody may commit while this runs; the report shows the beginning of the commit's name.
    commit = json.loads((workdir / "manifest.json").read_text())["git_commit"] or "no commit"
    shown = re.compile(re.escape(commit[:12].encode()) + b"(-dirty)?")
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir).as_posix()
        if path.is_dir():
            if path.name == "arrays":
                # Orbax names its files at random and notes the time: what counts are the numbers.
                found[name] = {key: _bits(array) for key, array in saved_arrays(path).items()}
        elif path.name == "timing.json" or {"xla_cache", "arrays", "tensorboard"} & set(
            path.relative_to(workdir).parts
        ):
            continue  # seconds, programs, and what is compared otherwise or holds the time
        elif path.name == "COMPLETE.json":
            found[name] = json.loads(path.read_text())["arrays"]  # the rest are Orbax's checksums
        elif name == "manifest.json":
            volatile = ("git_commit", "devices", "versions")
            manifest = json.loads(path.read_text())
            found[name] = {k: v for k, v in manifest.items() if k not in volatile}
        elif path.suffix == ".html":
            found[name] = shown.sub(b"commit", path.read_bytes())
        else:
            found[name] = path.read_bytes()
    return found


def saved_arrays(folder):
    """The arrays of a checkpoint on the host, whatever devices they were on."""
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True))
    names = checkpointer.metadata(folder).item_metadata.tree
    to_host = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=to_host))


def _bits(array):
    return str(array.dtype), array.shape, array.tobytes()
