"""TensorBoard's event files, written without TensorFlow.

A file is a series of records (TFRecord): length, its checksum, data, its checksum;
the data is a serialised ``tensorflow.Event`` with the scalars of a step. Both formats are fixed;
the few fields that scalars need are encoded here by hand.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_CASTAGNOLI = 0x82F63B78


def _table() -> Iterator[int]:
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
        yield byte


_TABLE = tuple(_table())


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class EventFile:
    """A new event file; what is written is in the hands of the operating system at once.

    Args:
        folder: where to; other processes may have left files there, which a viewer shows as one.
        first_step: steps from there on that are in older files are forgotten by a viewer.
    """

    def __init__(self, folder: str | os.PathLike[str], first_step: int):
        Path(folder).mkdir(parents=True, exist_ok=True)
        # The names that a viewer looks for; the process keeps two of one second apart.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(Path(folder) / name, "ab")
        self._write(_bytes(3, b"brain.Event:2"))
        start_of_session = _integer(1, 1)
        self._write(_integer(2, first_step) + _bytes(7, start_of_session))

    def write(self, step: int, scalars: Mapping[str, float | int]) -> None:
        """Appends the scalars of a step by name."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + struct.pack("<f", value))
            for name, value in scalars.items()
        )
        self._write(_integer(2, step) + _bytes(5, summary))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, fields: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))
        self._file.flush()


def _masked(data: bytes) -> bytes:
    """The checksum as records have it, such that a checksum of checksums is none of zeros."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
