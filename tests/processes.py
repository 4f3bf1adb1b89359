"""One command in several processes, with devices of a CPU each, as hosts of a TPU pod would."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.compiling import QUICKLY

ROOT = Path(__file__).parents[1]
PLAIN = ("-m", "robustjax")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Processes, the devices of each, and the mesh that all of these make up."""

    processes: int = 1
    devices: int = 1
    mesh: tuple[int, int, int] = (-1, 1, 1)

    @property
    def flags(self) -> list[str]:
        axes = zip(("data", "fsdp", "tensor"), self.mesh, strict=True)
        return [f"--config.mesh.{axis}={size}" for axis, size in axes]


@dataclasses.dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


def run(
    arguments: list[str],
    layout: Layout = Layout(),
    *,
    programs: Mapping[int, tuple[str, ...]] | None = None,
    lost_seconds: float = 120.0,
    cache: Path | None = None,
) -> list[Ended]:
    """Runs a command to its end in every process.

    Args:
        arguments: of the command, its name first; the mesh is added.
        layout: processes and devices.
        programs: what python runs in some processes instead of the command line.
        lost_seconds: silence after which a process is gone.
        cache: where compiled programs are kept, in place of the workdir.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        for index in range(layout.processes):
            program = (programs or {}).get(index, PLAIN)
            started.append(
                subprocess.Popen(
                    [sys.executable, *program, *arguments, *layout.flags],
                    cwd=ROOT,
                    env=_environment(layout, index, port, lost_seconds, cache),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(started[-1].kill)
        outputs = [process.communicate(timeout=300) for process in started]
    ends = zip(started, outputs, strict=True)
    return [Ended(process.returncode, out, err) for process, (out, err) in ends]


def _environment(
    layout: Layout, index: int, port: int, lost_seconds: float, cache: Path | None
) -> dict[str, str]:
    found = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(layout.devices),
        "XLA_FLAGS": QUICKLY,
        "ROBUSTJAX_LOST_SECONDS": str(lost_seconds),
    }
    if cache is not None:
        found["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    if layout.processes > 1:
        found |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(layout.processes),
            "JAX_PROCESS_ID": str(index),
        }
    return found
