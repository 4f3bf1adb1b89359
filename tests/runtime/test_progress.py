"""The progress line counts, estimates, and does not flood a log."""

import io

import pytest

from robustjax.runtime.progress import Forecast, Progress, format_seconds


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress(60, "finetune nano-1m", stream=stream, clock=clock) as progress:
        for step in range(60):
            clock.now += 0.5
            progress.advance(note=f"loss {step}")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "finetune nano-1m: 20/60 steps, 2/s, 0:10, ETA 0:20, loss 19",
        "finetune nano-1m: 40/60 steps, 2/s, 0:20, ETA 0:10, loss 39",
        "finetune nano-1m: 60/60 steps, 2/s, 0:30, loss 59",
    ]


def test_short_work_shows_nothing_if_asked(clock):
    for seconds, expected in ((2, []), (3, ["x: 1/1 steps, 3 s each, 0:03"])):
        stream = io.StringIO()
        with Progress(1, "x", stream=stream, patience=3.0, clock=clock) as progress:
            clock.now += seconds
            progress.advance()
        assert stream.getvalue().splitlines() == expected


def test_a_resumed_run_counts_only_new_work_in_its_rate(clock):
    progress = Progress(100, "x", done=50, stream=io.StringIO(), clock=clock)
    clock.now += 10
    progress.advance(10)
    assert progress.line() == "x: 60/100 steps, 1/s, 0:10, ETA 0:40"


def test_slow_work_is_shown_as_seconds_each(clock):
    progress = Progress(4, "x", stream=io.StringIO(), clock=clock)
    clock.now += 25
    progress.set(1)
    assert progress.line() == "x: 1/4 steps, 25 s each, 0:25, ETA 1:15"


def test_nested_progress_shows_both_labels(clock):
    stream = io.StringIO()
    with Progress(17, "study", "stages", stream=stream, clock=clock) as study:
        study.advance(2)
        attack = Progress(64, "attack gcg nano-1m", "examples", stream=stream, clock=clock)
        with attack:
            clock.now += 12
            attack.advance(12)
            assert attack.line() == (
                "study 3/17 | attack gcg nano-1m: 12/64 examples, 1/s, 0:12, ETA 0:52"
            )
        assert study.line() == "study: 2/17 stages, 6 s each, 0:12, ETA 1:30"


def test_a_failure_takes_the_progress_off_the_stack(clock):
    with pytest.raises(ZeroDivisionError):
        with Progress(2, "outer", stream=io.StringIO(), clock=clock):
            raise ZeroDivisionError
    assert Progress(2, "next", stream=io.StringIO(), clock=clock).line() == "next: 0/2 steps, 0:00"


def test_a_terminal_line_is_updated_in_place(clock):
    stream = Terminal()
    with Progress(2, "x", stream=stream, clock=clock) as progress:
        clock.now += 1
        progress.advance(note="a long note")
        clock.now += 1
        progress.advance(note="")
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    first, second = text.split("\r")[1:3]
    assert len(second) >= len(first)  # the shorter line wipes the longer one


def test_nothing_to_do_and_nothing_to_print(clock):
    stream = io.StringIO()
    with Progress(0, "empty", stream=stream, clock=clock):
        pass
    assert stream.getvalue() == "empty: 0/0 steps, 0:00\n"
    with Progress(1, "silent", stream=stream, clock=clock, enabled=False) as progress:
        clock.now += 60
        progress.advance()
    assert "silent" not in stream.getvalue()


def test_times():
    assert [format_seconds(s) for s in (0.0, 59.6, 61.0, 3600.0, 36000.0)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "10:00:00",
    ]


def test_a_forecast_tells_what_is_not_begun():
    clock = Clock()
    forecast = Forecast(clock)
    for units in (8, 64):
        forecast.expect("attack", units)
        forecast.expect("train", 100)
    assert forecast.seconds() is None
    with forecast.doing("attack", 8):
        clock.now += 4
    assert forecast.seconds() is None  # of training nothing is known yet
    with forecast.doing("train", 100):
        assert forecast.seconds() is None
        clock.now += 50
    assert forecast.seconds() == 64 * 0.5 + 50
    with forecast.doing("attack", 64):
        assert forecast.seconds() == 50  # what is being done is somebody else's to tell
        clock.now += 8
    assert forecast.seconds() == 50
    with forecast.doing("train", 100):
        assert forecast.seconds() == 0


def test_the_part_that_is_done_tells_when_all_will_be():
    clock, out, later = Clock(), io.StringIO(), [None]
    options = {"stream": out, "min_interval": 0, "clock": clock}
    with Progress(3, "job", unit="rounds", later=lambda: later[0], **options) as job:
        with Progress(10, "part", **options) as part:
            clock.now += 2
            part.advance()
            assert part.line() == "job 1/3 | part: 1/10 steps, 2 s each, 0:02, ETA 0:18"
            later[0] = 100.0
            assert part.line().endswith("0:02, ETA 0:18, ETA of all 1:58")
            # Its own rate says little where parts differ.
            job.advance()
            assert job.line() == "job: 1/3 rounds, 2 s each, 0:02, ETA 1:40"
            later[0] = 0.0
            assert part.line().endswith("ETA 0:18")
