"""An interrupt (Ctrl-C) that is heard wherever it falls."""

import contextlib
import gc
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SECONDS = 0.01
"""Until an interrupt that was put off comes again."""


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where Python by itself would print and forget it.

    Which is in callbacks of the garbage collector, of which JAX has one, and in ``__del__``: there
    the interrupt is put off until they are left. Where SIGINT does not raise KeyboardInterrupt, as
    in a process that ignores it, nothing is changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _would_be_forgotten(frame):
        raise KeyboardInterrupt
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
