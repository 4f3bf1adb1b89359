"""Interrupts and notices of preemption: where Python would forget them, and when they may wait."""

import gc
import signal
import time

import pytest

from robustjax.runtime import interrupts


@pytest.fixture(autouse=True)
def as_python_starts():
    """A CI that runs in the background ignores SIGINT, and so does what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    also_before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, also_before)
    signal.signal(signal.SIGINT, before)


def interrupt_in_a_callback(number=signal.SIGINT):
    """An interrupt inside a callback of the garbage collector, as jax registers one."""

    def callback(phase, info):
        if phase == "stop":
            signal.raise_signal(number)

    gc.callbacks.append(callback)
    gc.collect()
    gc.callbacks.remove(callback)


def interrupt_in_a_finalizer(number=signal.SIGINT):
    class Dying:
        def __del__(self):
            self.close()

        def close(self):
            signal.raise_signal(number)

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


def test_a_notice_of_preemption_ends_what_has_no_good_place_to_stop():
    with pytest.raises(interrupts.PreemptedError), interrupts.heard():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("not heard")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not interrupts.is_preempted()  # the next command starts anew


@pytest.mark.parametrize("interrupt", [interrupt_in_a_callback, interrupt_in_a_finalizer])
def test_a_notice_that_python_would_forget_is_heard_after_it(interrupt):
    with pytest.raises(interrupts.PreemptedError), interrupts.heard():
        interrupt(signal.SIGTERM)
        time.sleep(30)


def test_a_notice_waits_for_the_step_that_is_being_done():
    done = []
    with pytest.raises(interrupts.PreemptedError), interrupts.heard(), interrupts.finishing():
        for step in range(5):
            if step == 1:
                signal.raise_signal(signal.SIGTERM)
            done.append(step)
            if interrupts.is_preempted():
                interrupts.stop()
    assert done == [0, 1]


def test_a_block_that_never_asks_is_left_at_its_end():
    done = []
    with pytest.raises(interrupts.PreemptedError), interrupts.heard():
        with interrupts.finishing():
            with interrupts.finishing():
                signal.raise_signal(signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert done == ["inner"]


def test_a_second_notice_changes_nothing():
    with pytest.raises(interrupts.PreemptedError), interrupts.heard(), interrupts.finishing():
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.is_preempted()


def test_an_interrupt_does_not_wait_for_a_step():
    with pytest.raises(KeyboardInterrupt), interrupts.heard(), interrupts.finishing():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not heard")
