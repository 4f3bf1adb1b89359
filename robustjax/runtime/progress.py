"""A progress line with rate and ETA, for people watching a terminal or a log file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from robustjax.runtime.distributed import is_primary

_TTY_INTERVAL_SECONDS = 0.2
_LOG_INTERVAL_SECONDS = 10.0

_open: list["Progress"] = []


@runtime_checkable
class Stream(Protocol):
    """What a progress line needs of a stream."""

    def write(self, text: str, /) -> int:
        """Writes text."""
        ...

    def flush(self) -> None:
        """Shows what was written."""
        ...

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        ...


class Lines:
    """A stream on which progress appears line by line, also on a terminal: several share it."""

    def __init__(self, stream: Stream):
        self._stream = stream

    def write(self, text: str, /) -> int:
        """Writes text."""
        return self._stream.write(text)

    def flush(self) -> None:
        """Shows what was written."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Never."""
        return False


class Forecast:
    """Seconds that are to come of a job, from what work of each kind took so far.

    A job's parts can differ much in length, so that the share of them that is done says little::

        forecast = Forecast()
        for iterations in (8, 64):
            forecast.expect("attack", iterations)
            forecast.expect("train", 125)
        with forecast.doing("attack", 8):
            ...

    Args:
        clock: seconds from any origin; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._expected: dict[str, float] = {}
        self._done: dict[str, tuple[float, float]] = {}  # units and their seconds

    def expect(self, kind: str, units: float | int) -> None:
        """Counts units of work of a kind that are to come."""
        self._expected[kind] = self._expected.get(kind, 0.0) + units

    @contextlib.contextmanager
    def doing(self, kind: str, units: float | int) -> Iterator[None]:
        """Units that were expected are done in the block."""
        self._expected[kind] -= units
        started = self._clock()
        yield
        before, seconds = self._done.get(kind, (0.0, 0.0))
        self._done[kind] = (before + units, seconds + self._clock() - started)

    def seconds(self) -> float | None:
        """Seconds of what is not begun yet; None if nothing tells how long a kind takes."""
        total = 0.0
        for kind, units in self._expected.items():
            if units > 0:
                done, seconds = self._done.get(kind, (0.0, 0.0))
                if not done:
                    return None
                total += units / done * seconds
        return total


class Progress:
    """Counts work done and shows it, as a context manager.

    On a terminal one line is updated in place; elsewhere a line appears at most every 10 s. Either
    way the last state is shown at the end. A `Progress` opened inside another shows the labels of
    the outer ones before its own::

        with Progress(17, "study", unit="stages") as study:
            with Progress(64, "attack gcg nano-1m", unit="examples") as attack:
                attack.advance(note="loss 0.31")
        # study 3/17 | attack gcg nano-1m: 12/64 examples, 1.4/s, 0:09, ETA 0:41, loss 0.31

    Args:
        total: how much there is to do.
        label: what is being done.
        unit: what is counted.
        done: where the work starts; more than 0 when resuming. The rate counts new work only.
        stream: where to print, stderr by default.
        min_interval: least seconds between two prints.
        patience: work that takes no more seconds than this shows nothing.
        enabled: False prints nothing; nor do other processes than the primary one.
        later: tells the seconds of this work's parts that are not begun, or None if nobody knows
            yet (`Forecast.seconds`). The line of the part that is being done then tells when all of
            them will be.
        clock: seconds from any origin; for tests.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str = "steps",
        *,
        done: int = 0,
        stream: Stream | None = None,
        min_interval: float | None = None,
        patience: float = 0.0,
        enabled: bool = True,
        later: Callable[[], float | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total = total
        self.label = label
        self.unit = unit
        self.done = done
        self.note = ""
        self._first = done
        self._stream: Stream = sys.stderr if stream is None else stream
        self._is_tty = self._stream.isatty()
        default = _TTY_INTERVAL_SECONDS if self._is_tty else _LOG_INTERVAL_SECONDS
        self._min_interval = default if min_interval is None else min_interval
        self._patience = patience
        self._enabled = enabled and is_primary()
        self._later = later
        self._clock = clock
        self._started = self._last_print = clock()
        self._shown = ""

    def __enter__(self) -> "Progress":
        _open.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _open.remove(self)
        self._print(last=True)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Counts `count` more as done; `note` is shown at the end of the line until replaced."""
        self.set(self.done + count, note)

    def set(self, done: int, note: str | None = None) -> None:
        """Says how much is done in all."""
        self.done = done
        if note is not None:
            self.note = note
        if self._clock() - self._last_print >= self._min_interval:
            self._print(last=False)

    def line(self) -> str:
        """The line as it would be shown now."""
        elapsed = self._clock() - self._started
        new = self.done - self._first
        rate = new / elapsed if elapsed > 0 else 0.0
        outer = _open[: _open.index(self)] if self in _open else _open
        # An outer count names the piece being worked on, hence one more than what is done.
        prefix = "".join(f"{p.label} {min(p.done + 1, p.total)}/{p.total} | " for p in outer)
        parts = [f"{prefix}{self.label}: {self.done}/{self.total} {self.unit}"]
        if rate > 0:
            parts.append(_rate(rate))
        parts.append(format_seconds(elapsed))
        left = (self.total - self.done) / rate if rate > 0 else None
        if self._later is not None:
            left = self._later() if self.done < self.total else 0.0
        if left:
            parts.append(f"ETA {format_seconds(left)}")
        for p in outer:
            if p._later is not None and left is not None and (later := p._later()):
                parts.append(f"ETA of all {format_seconds(left + later)}")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)

    def _print(self, last: bool) -> None:
        if not self._enabled or self._clock() - self._started < self._patience:
            return
        self._last_print = self._clock()
        line = self.line()
        if self._is_tty:
            # Padding wipes what is left of a longer line; the end makes room for the next owner.
            self._stream.write("\r" + line.ljust(len(self._shown)) + ("\n" if last else ""))
        elif line != self._shown:
            self._stream.write(line + "\n")
        self._shown = line
        self._stream.flush()


def _rate(per_second: float) -> str:
    return f"{per_second:.3g}/s" if per_second >= 1 else f"{1 / per_second:.3g} s each"


def format_seconds(seconds: float) -> str:
    """Formats a time as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
