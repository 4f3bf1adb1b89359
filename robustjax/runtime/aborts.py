"""A last word before the C++ runtime aborts the process.

When the connection to JAX's coordinator breaks, the runtime prints what it knows of it and aborts,
from a thread of its own and past all exceptions; Python's own signal handlers would come too late.
"""

import contextlib
import ctypes
import signal
from collections.abc import Callable

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[Callable[[int], None]] = []


def before_abort(act: Callable[[], None]) -> None:
    """Lets something be done when the process is about to abort; it may end the process itself.

    Args:
        act: called in whatever thread aborts. If it returns, the process is aborted.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p

    def handle(number: int) -> None:
        libc.signal(number, None)  # the usual, also if what is done aborts too
        with contextlib.suppress(Exception):
            act()

    handler = _Handler(handle)
    _kept.append(handler)  # C knows only its address
    libc.signal(int(signal.SIGABRT), ctypes.cast(handler, ctypes.c_void_p))
