"""Saves checkpoints until it is killed; test_checkpoint_processes.py runs it in a process."""

import itertools
import sys

import numpy as np

from robustjax.runtime.checkpoint import Checkpoints


def arrays_of(step: int) -> dict:
    """Arrays large enough that a kill can fall into the middle of writing them."""
    return {"weights": np.full((300, 1000), step, np.float32), "step": np.asarray(step, np.int32)}


if __name__ == "__main__":
    checkpoints = Checkpoints(sys.argv[1])
    for step in itertools.count(int(sys.argv[2])):
        checkpoints.save(step, arrays_of(step), {"step": step})
        print(step, flush=True)
