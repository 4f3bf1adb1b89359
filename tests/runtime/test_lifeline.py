"""Who is gone, and what is said of it; service and clock are the test's own."""

import pytest

from robustjax.runtime.lifeline import Lifeline

LOST, STUCK = 60.0, 600.0


class Service:
    """What processes tell."""

    def __init__(self):
        self.said = {}
        self.is_gone = False

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        if self.is_gone:
            raise RuntimeError("UNAVAILABLE")
        self.said[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.said.items() if key.startswith(folder)]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def four(clock, service):
    """Four processes, and what they died with."""
    deaths = []
    lines = [
        Lifeline(service, index, 4, LOST, STUCK, deaths.append, clock, is_threaded=False)
        for index in range(4)
    ]
    lines[0].deaths = deaths
    return lines


def let_live(lines, clock, seconds, but=()):
    """All give signs of life every five seconds, some do not."""
    for _ in range(int(seconds / 5)):
        clock.now += 5
        for _ in range(2):  # each hears what the others told meanwhile
            for line in lines:
                if line not in but:
                    line.beat()


def test_nothing_is_said_of_those_who_live(four, clock):
    let_live(four, clock, 1000)
    assert [line.verdict() for line in four] == [None] * 4


def test_the_silent_one_is_named_after_the_time_out_and_not_before(four, clock):
    for line in four:
        line.come_to("attack batch 3 of 9")
    let_live(four, clock, 20)
    let_live(four, clock, LOST, but=four[2:3])
    assert four[0].verdict() is None
    let_live(four, clock, 10, but=four[2:3])
    for line in (four[0], four[1], four[3]):
        assert line.verdict() == (
            "process 2 of 4 gave no sign of life for 60 s since 'attack batch 3 of 9': it is gone "
            "or stuck; start the same command again on all hosts"
        )


def test_it_is_told_what_the_silent_one_did_not_come_to(four, clock):
    let_live(four, clock, 20)
    for line in (four[0], four[1], four[3]):
        line.come_to("attack batch 3 of 9")
    let_live(four, clock, LOST + 10, but=four[2:3])
    assert four[1].verdict() == (
        "process 2 of 4 did not come to 'attack batch 3 of 9' and gave no sign of life for 60 s: "
        "it is gone or stuck; start the same command again on all hosts"
    )


def test_one_that_never_began_is_named(four, clock):
    let_live(four, clock, LOST + 5, but=four[3:])
    assert "process 3 of 4 gave no sign of life for 60 s since 'the start'" in four[0].verdict()


def test_without_the_coordinator_it_is_the_one_that_is_gone(four, clock, service):
    let_live(four, clock, 20)
    service.is_gone = True
    clock.now += LOST + 1
    for line in four[1:]:
        with pytest.raises(RuntimeError):
            line.beat()
        assert line.verdict().startswith("process 0 of 4 gave no sign of life")


def test_one_that_ended_with_an_error_is_named_with_it(four, clock):
    let_live(four, clock, 20)
    four[1].leave("the disk is full")
    let_live(four, clock, 5, but=four[1:2])
    assert four[0].verdict() is None  # what ended it may end all, and each says so by itself
    let_live(four, clock, 15, but=four[1:2])
    assert four[0].verdict() == (
        "process 1 of 4 ended (the disk is full); start the same command again on all hosts"
    )


def test_all_say_what_the_first_one_found(four, clock):
    let_live(four, clock, 20)
    four[3].leave("!process 2 of 4 is stuck")
    four[0].beat()
    assert four[0].verdict() == "process 2 of 4 is stuck"


def test_those_who_live_but_do_not_come_are_named(four, clock):
    for line in four[:2]:
        line.come_to("saving W/checkpoints/00000004")
    let_live(four, clock, 20)
    four[0].give_up()
    assert four[0].deaths == [
        "process 2, 3 of 4 did not come to 'saving W/checkpoints/00000004' within 600 s: it is "
        "stuck; start the same command again on all hosts"
    ]
