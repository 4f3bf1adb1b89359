"""Starting several processes, and the few things they have to agree on.

On a TPU pod every host runs the same command. `start` has to come before any other JAX call.
"""

import os

import jax
from jax.experimental import multihost_utils

START_VARIABLE = "ROBUSTJAX_DISTRIBUTED"


def start(enabled: bool | None = None) -> None:
    """Joins the other processes of the run; does nothing in a single-process run.

    JAX finds the coordinator by itself on TPU pods, Slurm and the like, and elsewhere through
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Args:
        enabled: whether there are several processes. None asks the environment: yes when
            `ROBUSTJAX_DISTRIBUTED=1` or `JAX_COORDINATOR_ADDRESS` is set. It is never guessed from
            the hardware: `jax.distributed.initialize` waits for processes that may not exist.
    """
    if enabled is None:
        enabled = os.environ.get(START_VARIABLE) == "1" or "JAX_COORDINATOR_ADDRESS" in os.environ
    if enabled and not jax.distributed.is_initialized():
        count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
        )


def is_primary() -> bool:
    """Whether this process is the one that writes records and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
