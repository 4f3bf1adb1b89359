"""Noticing that a process of the run is gone, and saying which.

Each process tells every few seconds that it lives and where it is, through the coordination
service of JAX, and looks at what the others tell. One that is silent for too long is gone: the
others, which would wait for it in some collective for ever, end with a message. A collective cannot
be left by an exception, so they end from another thread; what a process has half written is taken
care of as after a SIGKILL.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from robustjax.runtime.interrupts import PREEMPTED_STATUS

LOST_STATUS = PREEMPTED_STATUS
"""What a process exits with when another one is gone: EX_TEMPFAIL, "try again"."""

_ALIVE = "robustjax/alive/"
REMEDY = "start the same command again on all hosts"
_ENDED, _VERDICT = "!", "!"
"""Begin what a process tells that ends before its time, and a reason that is a verdict."""
_MOST_SECONDS = 5.0
"""Between two signs of life."""


class _Peer(NamedTuple):
    """What is known of another process.

    Attributes:
        said: what it told last.
        since: when that was heard first.
        passed: places it has come to, or passed.
        place: the last of them.
        reason: why it ended, if it did not end well.
    """

    said: str
    since: float
    passed: int = 0
    place: str = "the start"
    reason: str = ""


class Lifeline:
    """Signs of life to and from the other processes.

    Args:
        client: of JAX's coordination service.
        index: the number of this process.
        count: how many there are.
        lost_seconds: silence after which a process is gone.
        stuck_seconds: how long the others wait for one that lives but does not come.
        die: ends this process with a message; for tests.
        clock: seconds from any origin; for tests.
    """

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        lost_seconds: float,
        stuck_seconds: float,
        die: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_threaded: bool = True,
    ):
        self.stuck_seconds = stuck_seconds
        self._client, self._index, self._count = client, index, count
        self._lost = lost_seconds
        self._interval = min(_MOST_SECONDS, lost_seconds / 10)
        self._die = self._exit if die is None else die
        self._clock = clock
        self._beats, self._passed, self._place = 0, 0, "the start"
        self._heard_all = clock()
        others = (one for one in range(count) if one != index)
        self._peers = {one: _Peer("", clock()) for one in others}
        self._closed = threading.Event()
        if is_threaded:
            # Two, for a call to a coordinator that is gone may take long to fail.
            for loop in (self._tell, self._watch):
                threading.Thread(target=loop, name="lifeline", daemon=True).start()

    def come_to(self, place: str) -> None:
        """Notes where this process is, for what the others may have to say of it."""
        self._passed, self._place = self._passed + 1, place

    def leave(self, reason: str) -> None:
        """Tells the others that this process ends before its time."""
        self._closed.set()
        # If nobody hears it, silence tells the same.
        with contextlib.suppress(Exception):
            said = _ENDED + reason
            self._client.key_value_set(f"{_ALIVE}{self._index}", said, allow_overwrite=True)
            self._linger()

    def close(self) -> None:
        """No more signs of life: all is done."""
        self._closed.set()

    def beat(self) -> None:
        """Gives a sign of life and takes in those of the others."""
        self._beats += 1
        said = f"{self._beats}\t{self._passed}\t{self._place}"
        self._client.key_value_set(f"{_ALIVE}{self._index}", said, allow_overwrite=True)
        for key, value in self._client.key_value_dir_get(_ALIVE):
            self._hear(int(key.rpartition("/")[2]), value)
        self._heard_all = self._clock()

    def _hear(self, index: int, said: str) -> None:
        peer = self._peers.get(index)
        if peer is None or peer.said == said:
            return
        if said.startswith(_ENDED):
            reason = said.removeprefix(_ENDED)
            self._peers[index] = peer._replace(said=said, since=self._clock(), reason=reason)
            return
        _, passed, place = said.split("\t", 2)
        self._peers[index] = _Peer(said, self._clock(), int(passed), place)

    def verdict(self) -> str | None:
        """What there is to say of a process that is gone; None if there is none."""
        now = self._clock()
        for number, peer in sorted(self._peers.items()):
            if peer.reason.startswith(_VERDICT):  # all say the same
                return peer.reason.removeprefix(_VERDICT)
            if peer.reason and now - peer.since > self._grace:
                return f"process {number} of {self._count} ended ({peer.reason}); {REMEDY}"
        if now - self._heard_all > self._lost and self._index:
            # Nothing can be known of the others without it.
            return self._gone(0)
        for number, peer in sorted(self._peers.items()):
            if not peer.reason and now - peer.since > self._lost:
                return self._gone(number)
        return None

    @property
    def _grace(self) -> float:
        """What ends one process may be about to end all, and each then says so by itself."""
        return 2 * self._interval

    def _gone(self, number: int) -> str:
        peer, seconds = self._peers[number], f"{self._lost:g} s"
        if peer.passed < self._passed:
            what = f"did not come to {self._place!r} and gave no sign of life for {seconds}"
        else:
            what = f"gave no sign of life for {seconds} since {peer.place!r}"
        return f"process {number} of {self._count} {what}: it is gone or stuck; {REMEDY}"

    def give_up(self) -> None:
        """Ends this process, which has waited in vain for others that live."""
        late = [str(one) for one, peer in sorted(self._peers.items()) if peer.passed < self._passed]
        which = f"process {', '.join(late) or '?'} of {self._count}"
        self._die(
            f"{which} did not come to {self._place!r} within {self.stuck_seconds:g} s: it is "
            f"stuck; {REMEDY}"
        )

    def wait_for_a_verdict(self) -> None:
        """Returns when all others have given a sign of life, if it comes to that."""
        asked = self._clock()
        while any(peer.since <= asked + self._interval for peer in self._peers.values()):
            time.sleep(self._interval / 4)

    def _tell(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(Exception):  # of the connection: what counts is how long
                self.beat()
            self._closed.wait(self._interval)

    def _watch(self) -> None:
        while not self._closed.wait(self._interval / 2):
            if message := self.verdict():
                self._die(message)

    def _exit(self, message: str) -> NoReturn:
        tell(message)
        self.leave(_VERDICT + message)
        exit_now(LOST_STATUS)

    def _linger(self) -> None:
        """The process through which the others hear of each other lets them hear."""
        until = self._clock() + 4 * self._interval
        while self._index == 0 and self._clock() < until:
            said = dict(self._client.key_value_dir_get(_ALIVE)).values()
            if sum(one.startswith(_ENDED) for one in said) == self._count:
                break
            time.sleep(self._interval / 4)


def tell(message: str) -> None:
    """Tells the user why this process ends."""
    print(f"\nrobustjax: {message}", file=sys.stderr, flush=True)


def exit_now(status: int) -> NoReturn:
    """Ends the process without what Python would do first: wait for all others to end as well."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
