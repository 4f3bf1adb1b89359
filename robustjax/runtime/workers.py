"""Independent jobs side by side, each in a process of its own with its share of the cores.

Small models leave most of a machine idle: their programs are too short for a second core to help.
Several processes with one core each do not have that problem, and what a job computes then does not
depend on how many others there are.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from robustjax.errors import UserError
from robustjax.runtime.progress import Lines

Tell = Callable[[Any], None]


def run_side_by_side(
    jobs: Sequence[str],
    work: Callable[[str, Tell], None],
    workers: int,
    on_message: Callable[[Any], None],
) -> None:
    """Runs all jobs, at most ``workers`` of them at a time, and waits for them.

    When this process dies, however it does, so do the others. When a job fails, the others are
    stopped.

    Args:
        jobs: names, in the order in which they are started.
        work: called in another process with a job's name and a function that sends messages here;
            it and what is bound to it must be importable from there.
        on_message: called here with each message.

    Raises:
        UserError: what a job raised.
        RuntimeError: a job ended in another way; its traceback is on stderr.
    """
    waiting = list(jobs)
    shares = _shares(workers)
    running: dict[int, tuple[str, Any, connection.Connection]] = {}
    try:
        while waiting or running:
            for slot in range(workers):
                if waiting and slot not in running:
                    running[slot] = _start(waiting.pop(0), work, shares[slot])
            connection.wait([receiver for _, _, receiver in running.values()])
            for slot, (job, process, receiver) in list(running.items()):
                if _listen(receiver, on_message):
                    continue
                process.join()
                del running[slot]
                if process.exitcode:
                    raise RuntimeError(f"{job} ended with exit code {process.exitcode}")
    finally:
        for _, process, _ in running.values():
            process.kill()
        for _, process, _ in running.values():
            process.join()


def _start(
    job: str, work: Callable[[str, Tell], None], cores: set[int]
) -> tuple[str, Any, connection.Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of jax
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(work, job, sender), name=job, daemon=True)
    with _on_cores(cores):
        process.start()
    sender.close()  # so that the end of the process is the end of the messages
    return job, process, receiver


def _run(work: Callable[[str, Tell], None], job: str, sender: connection.Connection) -> None:
    """What a worker process does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    sys.stderr = Lines(sys.stderr)  # it is shared with others
    try:
        work(job, sender.send)
    except UserError as error:
        sender.send(error)
    except KeyboardInterrupt:
        os._exit(130)  # the process that was interrupted with it says so


def _die_with(sentinel: Any) -> None:
    connection.wait([sentinel])
    os._exit(1)  # what is half written is taken care of as after a SIGKILL


def _listen(receiver: connection.Connection, on_message: Callable[[Any], None]) -> bool:
    """Passes on what has come; False when the other side is closed."""
    while receiver.poll():
        try:
            message = receiver.recv()
        except EOFError:
            return False
        if isinstance(message, UserError):
            raise message
        on_message(message)
    return True


def _shares(workers: int) -> list[set[int]]:
    """The cores of each worker; empty where cores cannot be assigned, or are too few."""
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * workers
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[slot::workers]) for slot in range(workers)]


@contextlib.contextmanager
def _on_cores(cores: set[int]) -> Iterator[None]:
    """Moves this thread to some cores; a process started there stays there."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
