"""Peak memory of a process. Standard library only: what we are compared with runs it too."""

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_resident_gb() -> float:
    """Most memory that this process ever held, in 1e9 bytes.

    Linux hands ``ru_maxrss`` of the process that starts another on to it, so a small child of a
    large parent would show the parent's; the status of the process itself counts from its start.
    """
    if _STATUS.exists():
        kibibytes = int(re.findall(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[0])
        return 1024 * kibibytes / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
