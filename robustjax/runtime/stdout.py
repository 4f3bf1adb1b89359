"""Standard output is for a command's result alone: scripts read it."""

import os
import sys


def keep_for_results() -> None:
    """What is not printed through `sys.stdout` goes to stderr from here on.

    Gloo tells about its connections on file descriptor 1, from several threads at a time, so that
    no reader could take its lines out again. Where `sys.stdout` is something else than that
    descriptor (a notebook, a captured test), it is left alone.
    """
    try:
        if sys.stdout.fileno() != 1:
            return
    except (AttributeError, OSError, ValueError):  # no file at all
        return
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(2, 1)
    sys.stdout = results
