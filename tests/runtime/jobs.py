"""Jobs for test_workers.py; a worker process imports them from here."""

import functools
import os
import time


def ready(work, *arguments):
    """What a worker process calls to have its work."""
    return functools.partial(work, *arguments)


def count(job, tell):
    """Tells the process and how many jobs it has done before."""
    tell((job, os.getpid(), len(done)))
    done.append(job)


done = []


def tell_twice(job, tell):
    tell((job, 1))
    tell((job, 2))


def note_times(folder, job, tell):
    begin = time.monotonic()
    time.sleep(0.5)
    (folder / job).write_text(f"{begin} {time.monotonic()}")


def tell_cores(job, tell):
    tell(sorted(os.sched_getaffinity(0)))


def fail_or_wait(folder, job, tell):
    from robustjax.errors import UserError

    if job == "wait":
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    if job == "crash":
        1 / 0  # noqa: B018
    while not (folder / "pid").exists():
        time.sleep(0.05)
    raise UserError("learning_rate=9 is too high; lower it")


def finish_step(folder, job, tell):
    """Waits for a notice of preemption, then ends its step."""
    from robustjax.runtime import interrupts

    with interrupts.finishing():
        (folder / f"{job}-waits").write_text("")
        while not interrupts.is_preempted():
            time.sleep(0.02)
        time.sleep(0.3)
        (folder / f"{job}-saved").write_text("")
        interrupts.stop()
