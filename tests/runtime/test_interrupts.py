"""An interrupt where Python would forget it, and where it does not matter."""

import gc
import signal
import time

import pytest

from robustjax.runtime import interrupts


@pytest.fixture(autouse=True)
def as_python_starts():
    """A CI that runs in the background ignores SIGINT, and so does what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_in_a_callback():
    """An interrupt inside a callback of the garbage collector, as jax registers one."""

    def callback(phase, info):
        if phase == "stop":
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    gc.collect()
    gc.callbacks.remove(callback)


def interrupt_in_a_finalizer():
    class Dying:
        def __del__(self):
            self.close()

        def close(self):
            signal.raise_signal(signal.SIGINT)

    Dying()


@pytest.mark.parametrize("interrupt", [interrupt_in_a_callback, interrupt_in_a_finalizer])
def test_what_python_would_forget_is_heard_after_it(interrupt):
    with pytest.raises(KeyboardInterrupt), interrupts.heard():
        interrupt()
        time.sleep(30)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_elsewhere_it_is_heard_at_once():
    with pytest.raises(KeyboardInterrupt), interrupts.heard():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not heard")


def test_a_process_that_ignores_interrupts_goes_on_to():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.heard():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
