"""A resumed log is byte for byte that of a run that was never stopped."""

import json
import subprocess
import sys

import numpy as np
import pytest

from robustjax.errors import UserError
from robustjax.runtime.runlog import MetricsLog, Stopwatch, read_json, read_metrics


def _write(path, steps, resume_at=0):
    with MetricsLog(path, resume_at) as log:
        for step in steps:
            log.write(step, {"loss": np.float32(1 / (step + 1)), "text": "é"})


@pytest.mark.parametrize("killed_after", [3, 4, 7])
@pytest.mark.parametrize("torn", [b"", b'{"step": 7, "lo', b'{"step": 7, "text": "\xc3', b'{"s\n'])
def test_resumed_equals_uninterrupted(tmp_path, killed_after, torn):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    _write(whole, range(10))
    _write(resumed, range(killed_after))
    with open(resumed, "ab") as file:
        file.write(torn)
    _write(resumed, range(3, 10), resume_at=3)  # the last checkpoint was step 3's
    assert resumed.read_bytes() == whole.read_bytes()
    assert [line["step"] for line in read_metrics(resumed)] == list(range(10))


def test_a_new_log_starts_afresh(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    _write(path, range(5))
    _write(path, range(2))
    assert [line["step"] for line in read_metrics(path)] == [0, 1]


def test_lines_are_on_disk_at_once_and_nan_is_null(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(0, {"loss": float("nan"), "learning_rate": 1e-5})
    assert (tmp_path / "m.jsonl").read_text() == (
        '{"step": 0, "loss": null, "learning_rate": 1e-05}\n'
    )
    log.close()


def test_steps_do_not_go_back(tmp_path):
    path = tmp_path / "m.jsonl"
    _write(path, [0, 1, 5])
    with MetricsLog(path, resume_at=6) as log:
        log.write(5, {"accuracy": 1.0})  # a second line for a step is fine
        with pytest.raises(ValueError, match="step 4 comes after step 5"):
            log.write(4, {})
        with pytest.raises(ValueError, match="'step'"):
            log.write(6, {"step": 6})


def test_a_line_that_is_there_is_not_written_again(tmp_path):
    path = tmp_path / "m.jsonl"
    _write(path, range(3))
    line = {"round": 1, "rate": np.float32(0.5)}
    with MetricsLog(path, resume_at=3) as log:
        log.write_once(2, line)
        log.write_once(2, line)
    written = path.read_bytes()
    with MetricsLog(path, resume_at=3) as log:  # killed right after it
        log.write_once(2, line)
    assert path.read_bytes() == written
    with MetricsLog(path, resume_at=3) as log:
        log.write_once(2, line | {"rate": 0.25})
        log.write_once(3, line)
    assert [one["step"] for one in read_metrics(path)] == [0, 1, 2, 2, 2, 3]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\ngarbage\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2 is not a line of a metrics log"):
        MetricsLog(path, resume_at=3)
    assert path.read_text().startswith('{"step": 0}\ngarbage')


def test_paths_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_metrics(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="an object store cannot append"):
        MetricsLog("gs://bucket/metrics.jsonl")


def test_stopwatch_adds_up(tmp_path):
    watch = Stopwatch()
    for _ in range(2):
        with watch.measure("seconds_compile"):
            pass
    with watch.measure("seconds"):
        pass
    watch.write(tmp_path, seconds_per_iteration_and_example=0.5)
    timing = read_json(tmp_path / "timing.json")
    assert timing.keys() == {"seconds", "seconds_compile", "seconds_per_iteration_and_example"}
    assert timing["seconds_compile"] >= 0 and timing["seconds_per_iteration_and_example"] == 0.5


def test_logs_and_stages_do_not_import_jax():
    code = (
        "import sys, json; sys.modules['jax'] = None\n"
        "import robustjax.runtime.runlog, robustjax.runtime.stages\n"
        "print(json.dumps(sorted(m for m in sys.modules if m.split('.')[0] == 'jaxlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
