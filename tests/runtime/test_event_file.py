"""Event files hold what was logged, as TensorBoard itself reads them."""

import struct

import pytest

from robustjax.runtime.event_file import EventFile, crc32c
from robustjax.runtime.runlog import MetricsLog


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # these of RFC 3720
        (bytes([0xFF] * 32), 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_the_checksum(data, expected):
    assert crc32c(data) == expected


def test_a_record_byte_by_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 2.0)
    file = EventFile(tmp_path, 3)
    file.write(300, {"loss": 0.5})
    file.close()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("events.out.tfevents.")
    records, data = [], path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        records.append(data[12 : 12 + length])
        data = data[16 + length :]
    two = b"\x09" + struct.pack("<d", 2.0)
    assert records == [
        two + b"\x1a\x0dbrain.Event:2",
        two + b"\x10\x03" + b"\x3a\x02\x08\x01",
        two + b"\x10\xac\x02" + b"\x2a\x0d\x0a\x0b" + b"\x0a\x04loss" + b"\x15\x00\x00\x00\x3f",
    ]


@pytest.mark.slow
def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown():
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        return {
            name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()["scalars"]
        }

    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 200):
            log.write(step, {"loss": 1 / step, "flops": step * 10**15, "text": "é"})
        log.write(199, {"accuracy": 1.0})
    assert shown() == {
        "loss": [(step, pytest.approx(1 / step)) for step in range(1, 200)],
        "flops": [(step, pytest.approx(step * 1e15)) for step in range(1, 200)],
        "accuracy": [(199, 1.0)],
    }

    # Killed after the checkpoint of step 150.
    with MetricsLog(path, resume_at=151) as log:
        log.write(151, {"loss": 7.0})
    found = shown()
    assert found["loss"][148:] == [
        (149, pytest.approx(1 / 149)),
        (150, pytest.approx(1 / 150)),
        (151, 7.0),
    ]
    assert len(found["flops"]) == 150 and found["accuracy"] == []


@pytest.mark.slow
def test_a_flipped_bit_is_found(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    file = EventFile(tmp_path, 0)
    file.write(1, {"loss": 0.5})
    file.write(2, {"loss": 0.25})
    file.close()
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1]
