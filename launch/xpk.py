"""Jobs on a Kubernetes cluster with TPUs, as JobSets that `xpk workload create` makes.

Kubernetes looks after them: it starts what was preempted again. The flags are those of xpk
(https://github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/workloads.md).
"""

import hashlib
import os
import shlex
from collections.abc import Sequence

from launch.jobs import Job
from launch.supervise import head_commit

MAX_NAME = 40
"""Letters of a workload's name that xpk takes."""

NEEDED = ("cluster", "docker-image", "tpu-type")


def submission(job: Job, flags: Sequence[str]) -> list[str]:
    """The command that submits a job.

    Args:
        job: the job.
        flags: of `xpk workload create`; `NEEDED` are. The image has robustjax in it.

    Raises:
        SystemExit: a flag is missing.
    """
    for name in NEEDED:
        if not any(flag.startswith(f"--{name}=") for flag in flags):
            raise SystemExit(f"sweep: --{name}= is missing: xpk needs it")
    commit = os.environ.get("ROBUSTJAX_COMMIT") or head_commit()
    defaults = ["--max-restarts=50", "--restart-on-user-code-failure"]
    return [
        *("xpk", "workload", "create", f"--workload={workload_name(job.name)}"),
        *(one for one in defaults if not any(f.startswith(one.split("=")[0]) for f in flags)),
        *flags,
        f"--env=ROBUSTJAX_COMMIT={commit}",
        "--env=ROBUSTJAX_DISTRIBUTED=1",
        f"--command={shlex.join(['robustjax', *job.command])}",
    ]


def workload_name(name: str) -> str:
    """A name that xpk takes, and that only this job has."""
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
