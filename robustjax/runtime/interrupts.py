"""Signals that end a run: an interrupt (Ctrl-C), and a notice of preemption (SIGTERM).

An interrupt is heard at once, wherever it falls. A notice of preemption gives some seconds: work
that can stop at a good place finishes its step and saves (`finishing`); everything else is left at
once. Nothing is lost either way, since a run may be killed anywhere.
"""

import contextlib
import gc
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

PREEMPTED_STATUS = 75
"""What a preempted command exits with: EX_TEMPFAIL of sysexits.h, "try again"."""

_SECONDS = 0.01
"""Until an interrupt that was put off comes again."""


class PreemptedError(BaseException):
    """The process was asked to end, and what it did is saved; like KeyboardInterrupt no error."""


class _Notice:
    """Whether the process was asked to end, and how many blocks want to finish their step."""

    def __init__(self) -> None:
        self.is_given = False
        self.finishing = 0


_notice = _Notice()


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt and SIGTERM PreemptedError, wherever they fall.

    Also where Python by itself would print the exception and forget it, which is in callbacks of
    the garbage collector, of which JAX has one, and in ``__del__``: there the signal is put off
    until they are left. A process that handles one of them otherwise, or ignores it, still does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    ours: dict[int, Any] = {signal.SIGINT: _interrupt, signal.SIGTERM: _preempt}
    taken = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    for number in taken:
        signal.signal(number, ours[number])
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, usual[number])
        _notice.is_given = False


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Inside, a notice of preemption waits for the block to come to a good place.

    There it asks `is_preempted`, saves, and calls `stop`. If it does not, the block is left by
    PreemptedError at its end. More notices change nothing: a process and the one that started it
    may both be told, and pass it on.
    """
    _notice.finishing += 1
    try:
        yield
    finally:
        _notice.finishing -= 1
    if not _notice.finishing and _notice.is_given:
        stop()


def is_preempted() -> bool:
    """Whether the process was asked to end."""
    return _notice.is_given


def stop() -> None:
    """Ends what was asked to end.

    Raises:
        PreemptedError: always.
    """
    raise PreemptedError


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _would_be_forgotten(frame):
        _again(number)
    else:
        raise KeyboardInterrupt


def _preempt(number: int, frame: FrameType | None) -> None:
    if _notice.finishing:
        _notice.is_given = True
    elif _would_be_forgotten(frame):
        _again(number)
    else:
        _notice.is_given = True
        stop()


def _again(number: int) -> None:
    """Sends a signal again in a moment."""
    # To the main thread itself, or a system call that it waits in would not be left.
    main = threading.main_thread().ident
    again = threading.Timer(_SECONDS, signal.pthread_kill, (main, number))
    again.daemon = True
    again.start()


def _would_be_forgotten(frame: FrameType | None) -> bool:
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
