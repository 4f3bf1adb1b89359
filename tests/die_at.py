"""Runs the command line and kills itself with SIGKILL at the n-th of some moments.

    python tests/die_at.py MOMENT N SEED study --config=... --workdir=...

A process killed from outside dies at moments nobody chose; these are chosen, so that each of
them is sure to be met. Or it sends itself SIGTERM there, and goes on as a preempted process does.
Run by test_kill.py and advtrain_kills.py.
"""

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from robustjax.attacks.saved_search import SavedSearch
from robustjax.cli import main
from robustjax.evaluation import records
from robustjax.runtime import checkpoint
from robustjax.runtime.runlog import MetricsLog
from robustjax.runtime.stages import Stage
from robustjax.training import adversarial

_SLOWEST_DELAY_SECONDS = 0.08  # the arrays take about 0.1 s to be written


def die() -> None:
    """Says nothing, flushes nothing, closes nothing."""
    os.kill(os.getpid(), signal.SIGKILL)


def preempt(original: Callable, *args: Any, **kwargs: Any) -> None:
    """Does it, then is asked to end."""
    original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGTERM)


def before(original: Callable, *args: Any, **kwargs: Any) -> None:
    """Dies instead of doing it."""
    die()


def after(original: Callable, *args: Any, **kwargs: Any) -> None:
    """Does it, then dies."""
    original(*args, **kwargs)
    die()


def during(original: Callable, *args: Any, **kwargs: Any) -> None:
    """Dies some time while doing it."""
    threading.Timer(random.uniform(0, _SLOWEST_DELAY_SECONDS), die).start()
    original(*args, **kwargs)
    die()


def half_a_metrics_line(original: Callable, log: MetricsLog, step: int, metrics: dict) -> None:
    """Leaves the beginning of a line."""
    log._file.write(f'{{"step": {step}, "lo')
    log._file.flush()
    die()


def half_a_batch_of_records(original: Callable, path: Any, new: list) -> None:
    """Leaves some whole records and the beginning of one."""
    data = "".join(records._line(record) for record in new)
    with open(path, "a") as file:
        file.write(data[: len(data) * 2 // 3])
    die()


def save_every_iteration() -> None:
    """A search saves its state after every iteration, not every few seconds."""
    SavedSearch.is_due = lambda self: self.is_on  # type: ignore[method-assign]


MOMENTS = {
    "training": (MetricsLog, "write", after),
    "training-torn": (MetricsLog, "write", half_a_metrics_line),
    "attack": (records, "append_records", after),
    "attack-torn": (records, "append_records", half_a_batch_of_records),
    "attack-iteration": (SavedSearch, "save", after),
    "preempted-attack": (SavedSearch, "is_due", preempt),
    "preempted-training": (MetricsLog, "write", preempt),
    "preempted-saving": (checkpoint._Write, "__init__", preempt),
    "saving-model": (adversarial, "save_model", before),
    "saving-arrays": (checkpoint._Write, "_complete", during),
    "saving-marker": (checkpoint, "fingerprints", before),
    "stage-claimed": (Stage, "start", after),
    "stage-unmarked": (Stage, "finish", before),
    "stage-finished": (Stage, "finish", after),
}


def die_at(moment: str, count: int) -> None:
    """Arms the `count`-th call of the moment's function."""
    owner, name, how = MOMENTS[moment]
    original, calls = getattr(owner, name), 0

    def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            return how(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, armed)


if __name__ == "__main__":
    random.seed(int(sys.argv[3]))
    save_every_iteration()
    die_at(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[4:]))
