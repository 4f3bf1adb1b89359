"""Independent jobs side by side, each in a process of its own with its share of the cores.

Small models leave most of a machine idle: their programs are too short for a second core to help.
Several processes with one core each do not have that problem, and what a job computes then does not
depend on how many others there are.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from robustjax.errors import UserError
from robustjax.runtime import interrupts
from robustjax.runtime.progress import Lines

Tell = Callable[[Any], None]
Work = Callable[[str, Tell], None]


@dataclasses.dataclass(frozen=True)
class Job:
    """Something to do.

    Attributes:
        name: what names it to the worker that does it.
        after: the job that must be done before it can start; empty if none.
    """

    name: str
    after: str = ""


@dataclasses.dataclass
class _Worker:
    """A worker process, this side of the pipe to it, and what it does now."""

    process: Any
    pipe: connection.Connection
    job: str = ""


class _Done:
    """What a worker sends when it has done its job."""


def run_side_by_side(
    jobs: Sequence[Job],
    make_work: Callable[[], Work],
    workers: int,
    on_message: Callable[[Any], None],
) -> None:
    """Runs all jobs, one at a time in each of ``workers`` processes, and waits for them.

    When this process dies, however it does, so do the others. When a job fails, the others are
    stopped. When this process is asked to end, they are too, and may finish their step.

    Args:
        jobs: the first that can start is the next to start.
        make_work: called once in each process; what it returns is called there with a job's name
            and a function that sends messages here. It and what is bound to it must be importable
            from there.
        on_message: called here with each message.

    Raises:
        UserError: what a job raised.
        PreemptedError: this process, or one of the others, was asked to end.
        RuntimeError: a process ended before its job did; its traceback is on stderr.
        ValueError: jobs that wait for each other.
    """
    waiting, unfinished = list(jobs), {job.name for job in jobs}
    staff: list[_Worker] = []
    try:
        for cores in _shares(min(workers, len(jobs))):
            staff.append(_start(make_work, cores))
        while unfinished:
            for worker in staff:
                ready = (job for job in waiting if job.after not in unfinished)
                if not worker.job and (job := next(ready, None)):
                    waiting.remove(job)
                    worker.job = job.name
                    worker.pipe.send(job.name)
            busy = [worker for worker in staff if worker.job]
            if not busy:
                raise ValueError(f"jobs wait for each other: {waiting}")
            heard = connection.wait([worker.pipe for worker in busy])
            for worker in busy:
                if worker.pipe not in heard:
                    continue
                message = _receive(worker)
                if isinstance(message, _Done):
                    unfinished.remove(worker.job)
                    worker.job = ""
                else:
                    on_message(message)
        for worker in staff:
            worker.pipe.send("")  # nothing more to do
    except interrupts.PreemptedError:
        for worker in staff:
            worker.process.terminate()
        raise
    except BaseException:
        for worker in staff:
            worker.process.kill()
        raise
    finally:
        for worker in staff:
            worker.process.join()


def _receive(worker: _Worker) -> Any:
    try:
        message = worker.pipe.recv()
    except EOFError:
        worker.process.join()
        if worker.process.exitcode == interrupts.PREEMPTED_STATUS:
            interrupts.stop()
        raise RuntimeError(f"{worker.job} ended with exit code {worker.process.exitcode}") from None
    if isinstance(message, UserError):
        raise message
    return message


def _start(make_work: Callable[[], Work], cores: set[int]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of jax
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(make_work, there), daemon=True)
    with _on_cores(cores):
        process.start()
    there.close()  # so that the end of the process is the end of the messages
    return _Worker(process, here)


def _run(make_work: Callable[[], Work], pipe: connection.Connection) -> None:
    """What a worker process does, until it is sent an empty name."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    sys.stderr = Lines(sys.stderr)  # it is shared with others
    try:
        with interrupts.heard():
            work = make_work()
            while job := pipe.recv():
                work(job, pipe.send)
                pipe.send(_Done())
    except UserError as error:
        pipe.send(error)
    except interrupts.PreemptedError:
        os._exit(interrupts.PREEMPTED_STATUS)
    except KeyboardInterrupt:
        os._exit(130)  # the process that was interrupted with it says so


def _die_with(sentinel: Any) -> None:
    connection.wait([sentinel])
    os._exit(1)  # what is half written is taken care of as after a SIGKILL


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
