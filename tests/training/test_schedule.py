"""Attack iterations round by round, with the numbers of the published runs."""

import pytest

from robustjax.errors import UserError
from robustjax.training.schedule import AttackSchedule, ScheduleError


def _rounds(schedule, num_rounds):
    return [schedule.iterations(index, num_rounds) for index in range(num_rounds)]


@pytest.mark.parametrize(
    ("start", "end", "num_rounds", "expected"),
    [
        (8, 64, 10, [8, 14, 20, 26, 32, 39, 45, 51, 57, 64]),
        (8, 64, 5, [8, 22, 36, 50, 64]),
        (1024, 2048, 5, [1024, 1280, 1536, 1792, 2048]),
        (3, 3, 1, [3]),
    ],
)
def test_from_start_to_end(start, end, num_rounds, expected):
    assert _rounds(AttackSchedule(start=start, end=end), num_rounds) == expected


def test_truncation_can_lose_one_in_the_last_round():
    last = {
        num_rounds: _rounds(AttackSchedule(start=8, end=64), num_rounds)[-1]
        for num_rounds in range(2, 100)
    }
    lost = [num_rounds for num_rounds, iterations in last.items() if iterations == 63]
    assert lost[:3] == [56, 72, 84]
    assert set(last.values()) == {63, 64}


def test_with_a_rate():
    assert _rounds(AttackSchedule(start=10, rate=2.5), 4) == [10, 12, 15, 17]
    # The start is 20 - int(2.5 * 3) = 13, so the end is met exactly.
    assert _rounds(AttackSchedule(end=20, rate=2.5), 4) == [13, 15, 18, 20]
    assert _rounds(AttackSchedule(start=10, rate=-3.0), 4) == [10, 7, 4, 1]


@pytest.mark.parametrize("schedule", [AttackSchedule(start=10), AttackSchedule(end=10)])
@pytest.mark.parametrize("num_rounds", [1, 5])
def test_one_number_is_constant(schedule, num_rounds):
    assert _rounds(schedule, num_rounds) == [10] * num_rounds


def test_one_round():
    assert AttackSchedule(start=4, rate=0.0).iterations(0, 1) == 4
    for schedule in (AttackSchedule(start=4, rate=1.0), AttackSchedule(end=4, rate=1.0)):
        with pytest.raises(ValueError, match="If num_rounds<=1, rate must be 0."):
            schedule.iterations(0, 1)
    with pytest.raises(ValueError, match="If num_rounds<=1, start must equal end."):
        AttackSchedule(start=4, end=5).iterations(0, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither start nor end"),
        ({"rate": 1.0}, "neither start nor end"),
        ({"start": 1, "end": 2, "rate": 1.0}, "all given"),
        ({"start": 0}, "schedule.start: 0 is below 1"),
        ({"end": -1}, "schedule.end: -1 is below 1"),
        ({"start": 1, "rate": float("nan")}, "schedule.rate"),
    ],
)
def test_contradictions(fields, message):
    with pytest.raises(ScheduleError, match=message) as caught:
        AttackSchedule(**fields)
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ValueError)


def test_rounds_that_do_not_exist():
    schedule = AttackSchedule(start=8, end=64)
    for index in (-1, 10):
        with pytest.raises(IndexError, match=f"round {index} is not one of the 10 rounds"):
            schedule.iterations(index, 10)


def test_never_below_one_iteration():
    with pytest.raises(ScheduleError, match="round 0 of 4 would have -1 iterations"):
        AttackSchedule(end=2, rate=1.0).iterations(3, 4)
    with pytest.raises(ScheduleError, match="round 3 of 4 would have -4 iterations"):
        AttackSchedule(start=2, rate=-2.0).iterations(0, 4)
