"""The programs of a worker of fake_gcloud.py: `python3`, `uv` and the Python of the environment.

Each is a script that calls this file with its own path and its arguments. As the environment's
Python it is robustjax: it notes what it was started with, and does what `Cloud.behave` said.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def stub(path: Path) -> None:
    """Makes a program that calls this file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/bash\nexec {sys.executable} {__file__} "$0" "$@"\n')
    path.chmod(0o755)


def run(program: Path, arguments: list[str]) -> int:
    home = Path(os.environ["HOME"])
    if arguments[:2] == ["-m", "pip"]:
        stub(home / ".local" / "bin" / "uv")
    elif program.name == "uv":
        with open(home / "uv.jsonl", "a") as file:
            file.write(json.dumps(arguments) + "\n")
        if arguments == ["--version"]:
            print("uv 0.13.9 (fake)")
        elif arguments[0] == "venv":
            stub(Path(arguments[-1]) / "bin" / "python")
    elif arguments[:1] == ["-c"]:
        print("jax 0.10.2")
    elif arguments[:2] == ["-m", "launch.progress"]:  # of the code that was sent
        return subprocess.run([sys.executable, *arguments]).returncode
    else:
        assert arguments[:2] == ["-m", "robustjax"], arguments
        return robustjax(home, arguments[2:])
    return 0


def robustjax(home: Path, arguments: list[str]) -> int:
    wanted = ("ROBUSTJAX", "JAX", "EXTRA")
    environment = {k: v for k, v in os.environ.items() if k.startswith(wanted)}
    with open(home / "runs.jsonl", "a") as file:
        file.write(json.dumps({"arguments": arguments, "environment": environment}) + "\n")
    cloud = home.parents[2]
    with open(cloud / "all_runs.jsonl", "a") as file:  # outlives the host
        file.write(json.dumps({"host": home.name, "slice": home.parent.name} | environment) + "\n")
    told = cloud / "jobs.json"
    job = (json.loads(told.read_text()) if told.exists() else {}).get(f"worker_{home.name}", {})
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
    print("robustjax begins", flush=True)
    workdir = arguments[-1].partition("--workdir=")[2]
    if workdir and job.get("writes"):
        folder = cloud / "buckets" / workdir.removeprefix("gs://")  # a shared one stays what it is
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "attack_records.jsonl", "a") as file:
            file.write("a record\n")
    while job.get("waits") and not (cloud / "released").exists():
        time.sleep(0.05)
    print("robustjax ends", flush=True)
    return job.get("status", 0)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
