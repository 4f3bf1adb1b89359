"""Several processes that run one program: starting them, what they agree on, and how they end.

On a TPU pod every host runs the same command. Each makes the same plan on its host and enters the
same device programs in the same order; they part only where rows of a batch do
(`robustjax.runtime.rows`), and only the primary one writes results and shows progress. `start` has
to come before any other JAX call.
"""

import contextlib
import functools
import itertools
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from robustjax.errors import UserError
from robustjax.runtime import lifeline, stdout
from robustjax.runtime.aborts import before_abort
from robustjax.runtime.lifeline import Lifeline
from robustjax.runtime.messages import packed, unpacked

START_VARIABLE = "ROBUSTJAX_DISTRIBUTED"
LOST_VARIABLE, STUCK_VARIABLE = "ROBUSTJAX_LOST_SECONDS", "ROBUSTJAX_STUCK_SECONDS"

_LOST_SECONDS, _STUCK_SECONDS = 60.0, 1800.0
_CHUNK_BYTES = 1 << 20  # a message of gRPC may have 4 MB unless told otherwise
_T = TypeVar("_T")


class _Joined:
    """What this process knows of its run, if there are several: the others, and what is shared."""

    def __init__(self) -> None:
        self.lifeline: Lifeline | None = None
        self.numbers = itertools.count()
        self.to_delete: list[str] = []


_joined = _Joined()


def start(enabled: bool | None = None) -> None:
    """Joins the other processes of the run; does nothing in a single-process run.

    From then on stdout is for what this program prints, not for what libraries do.

    JAX finds the coordinator by itself on TPU pods, Slurm and the like, and elsewhere through
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    Args:
        enabled: whether there are several processes. None asks the environment: yes when
            `ROBUSTJAX_DISTRIBUTED=1` or `JAX_COORDINATOR_ADDRESS` is set, or on a TPU slice of
            several hosts (`ROBUSTJAX_DISTRIBUTED=0` keeps a host of those by itself).

    Raises:
        UserError: the variables are no numbers, or the others do not come.
    """
    if enabled is None:
        enabled = _is_wanted()
    if not enabled:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    lost, stuck = _seconds(LOST_VARIABLE, _LOST_SECONDS), _seconds(STUCK_VARIABLE, _STUCK_SECONDS)
    number, place = _integer("JAX_NUM_PROCESSES"), _integer("JAX_PROCESS_ID")
    # SIGTERM is ours (`robustjax.runtime.interrupts`), and so is telling who is lost: JAX would
    # end all processes with a page of its own, so its patience is longer.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            num_processes=number,
            process_id=place,
            heartbeat_timeout_seconds=int(3 * lost) + 60,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run do not come together ({str(error).splitlines()[0]}); start "
            "the same command on all hosts, with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID where they are not found by themselves"
        ) from error
    if count() > 1:
        stdout.keep_for_results()
        _joined.lifeline = Lifeline(_client(), index(), count(), lost, stuck)
        if not is_primary():
            before_abort(_tell_if_coordinator_is_gone)


def _tell_if_coordinator_is_gone() -> None:
    """Ends the process in an orderly way if it is aborted because of that."""
    from jax._src import distributed

    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return
    except OSError:
        lifeline.tell(
            f"process 0 of {count()}, through which all hear of each other, is gone; "
            f"{lifeline.REMEDY}"
        )
        lifeline.exit_now(lifeline.LOST_STATUS)


def index() -> int:
    """The number of this process, from 0; known without JAX's devices being asked."""
    return _state("process_id", 0)


def count() -> int:
    """How many processes run the program."""
    return _state("num_processes", 1)


def is_primary() -> bool:
    """Whether this process is the one that writes records and prints."""
    return index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name.

    If one does not, this process ends with a message that says which.
    """
    if count() == 1:
        return
    key = f"{next(_joined.numbers)}: {name}"
    with _coming_to(name) as milliseconds:
        _client().wait_at_barrier(f"robustjax {key}", milliseconds)
    _tidy()


def from_primary(
    make: Callable[[], _T],
    name: str,
    *,
    plain: Callable[[_T], Any] = lambda value: value,
    back: Callable[[Any], _T] = lambda value: value,
) -> _T:
    """What the primary process makes, in all of them: it alone reads what it alone writes.

    Args:
        make: called in the primary process only. What it raises, all raise.
        name: what is waited for, in messages.
        plain: makes of it what `messages.packed` takes.
        back: makes it of that again.

    Raises:
        UserError: the primary process raised one.
        RuntimeError: it raised something else.
    """
    if count() == 1:
        return make()
    key = f"robustjax/{next(_joined.numbers)}"
    if is_primary():
        if _joined.lifeline is not None:
            _joined.lifeline.come_to(name)
        try:
            made = make()
        except Exception as error:
            _put(key, (False, isinstance(error, UserError), str(error)))
            raise
        _put(key, (True, plain(made)))
        return made
    with _coming_to(name) as milliseconds:
        is_made, *said = _get(key, milliseconds)
    if is_made:
        return back(*said)
    is_users, text = said
    raise UserError(text) if is_users else RuntimeError(f"{name}: {text}")


def everyones(value: _T, name: str) -> list[_T]:
    """A small value of every process, by their numbers; each waits for all.

    Args:
        value: what `messages.packed` takes.
        name: what is waited for, in messages.
    """
    if count() == 1:
        return [value]
    number = next(_joined.numbers)
    _put(f"robustjax/{number}/{index()}", value)
    with _coming_to(name) as milliseconds:
        found = [_get(f"robustjax/{number}/{one}", milliseconds) for one in range(count())]
    barrier(name)  # then all have read, and values can be deleted
    return found


def end(status: int, reason: str = "") -> None:
    """Ends this process's part of the run; the last thing a command does.

    Well done (status 0), all come together once more. Otherwise the others are told, so that they
    end too, and this process ends here: it does not wait for them.

    Args:
        status: the exit status.
        reason: one line for the others.
    """
    if _joined.lifeline is None:
        return
    if status:
        _joined.lifeline.leave(reason)
        lifeline.exit_now(status)
    barrier("the end")
    _joined.lifeline.close()
    _joined.lifeline = None
    import jax

    jax.distributed.shutdown()


def fail(error: BaseException) -> None:
    """Ends this process if there are several, after an error that nobody expects.

    A collective fails in the others when a process dies. So time is given to find out whether one
    did, and if so that is what is told.
    """
    if _joined.lifeline is None:
        return
    _joined.lifeline.wait_for_a_verdict()
    traceback.print_exception(error, file=sys.stderr)
    end(1, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


@contextlib.contextmanager
def _coming_to(name: str) -> Iterator[int]:
    """Waiting for others to come to a place; milliseconds that it may take.

    Whoever is waited for in vain is named, and this process ends.
    """
    watch = _joined.lifeline
    if watch is None:  # somebody else started the processes
        yield int(1000 * _STUCK_SECONDS)
        return
    watch.come_to(name)
    started = time.monotonic()
    try:
        yield int(1000 * watch.stuck_seconds)
    except Exception:
        watch.wait_for_a_verdict()
        if time.monotonic() - started >= watch.stuck_seconds:
            watch.give_up()
        raise


def _put(key: str, value: Any) -> None:
    data = packed(value)
    chunks = [data[at : at + _CHUNK_BYTES] for at in range(0, len(data), _CHUNK_BYTES)]
    for number, chunk in enumerate(chunks):
        _client().key_value_set_bytes(f"{key}/{number}", chunk)
    _client().key_value_set(f"{key}/size", str(len(chunks)))
    _joined.to_delete.append(f"{key}/")


def _get(key: str, milliseconds: int) -> Any:
    chunks = int(_client().blocking_key_value_get(f"{key}/size", milliseconds))
    get = functools.partial(_client().blocking_key_value_get_bytes, timeout_in_ms=milliseconds)
    return unpacked(b"".join(get(f"{key}/{number}") for number in range(chunks)))


def _tidy() -> None:
    """Deletes what this process gave away before a barrier, which all have passed."""
    for key in _joined.to_delete:
        _client().key_value_delete(key)
    _joined.to_delete.clear()


def _state(name: str, default: int) -> int:
    # Reports are made where JAX cannot be imported; what is not imported was not started either.
    module = sys.modules.get("jax._src.distributed")
    if module is None or module.global_state.client is None:
        return default
    return getattr(module.global_state, name)


def _client() -> Any:
    """The coordination service, which jax.distributed started."""
    from jax._src import distributed

    return distributed.global_state.client


def _is_wanted() -> bool:
    asked = os.environ.get(START_VARIABLE)
    if asked is not None:
        return asked == "1"
    return "JAX_COORDINATOR_ADDRESS" in os.environ or _is_on_a_pod()


def _is_on_a_pod() -> bool:
    """Whether this is a host of several of one TPU slice, which run the command together."""
    if (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu":
        return False
    from jax._src import clusters, hardware_utils

    if not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        return False
    kinds = (clusters.GkeTpuCluster, clusters.GceTpuCluster)
    kind = next((one for one in kinds if one.is_env_present()), None)
    return kind is not None and kind.get_process_count() > 1


def _integer(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{variable}={text!r} is not a number; set it to one") from error


def _seconds(variable: str, usual: float) -> float:
    text = os.environ.get(variable, "")
    try:
        seconds = float(text or usual)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{variable}={text!r} is not a number of seconds above 0; set it to one")
    return seconds
