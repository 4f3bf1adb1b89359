"""Reads and writes safetensors files tensor by tensor.

The format: eight bytes with the length of a JSON header (little endian), the header, the tensors'
bytes. Ours rather than the library's, because a file is read without mapping it into memory (mapped
pages count as resident), written without holding it in memory, and every way in which it can be
damaged has its own message.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from robustjax.errors import UserError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its type, its shape, and where its bytes begin in the file."""

    dtype_name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class SafetensorsFile:
    """A file that was checked to be whole: its tensors by name."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor, with its own type.

        Raises:
            UserError: its type is none of NumPy's (8-bit floats, quantised weights).
        """
        info = self.tensors[name]
        if info.dtype_name not in _DTYPES:
            raise UserError(
                f"{self.path}: tensor {name} has type {info.dtype_name}; only "
                f"{', '.join(_DTYPES)} can be read, so convert it first"
            )
        dtype = _DTYPES[info.dtype_name]
        flat = np.fromfile(self.path, dtype, math.prod(info.shape), offset=info.start)
        return flat.reshape(info.shape)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Reads a file's header and checks that the file is whole.

    Raises:
        UserError: it is truncated or no safetensors file, or names a tensor twice.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
                raise UserError(
                    f"{path}: the header should have {length} bytes, the file has {size}; it is "
                    "truncated or no safetensors file, so fetch it again"
                )
            header = json.loads(file.read(length), object_pairs_hook=_without_doubles(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise UserError(f"{path}: the header is not JSON; fetch the file again") from error
    data = _LENGTH_BYTES + length
    tensors = {
        name: _tensor_info(path, name, entry, data)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = max((info.stop for info in tensors.values()), default=data)
    if end != size:
        raise UserError(
            f"{path}: the header promises {end} bytes, the file has {size}; it is damaged, so "
            "fetch it again"
        )
    return SafetensorsFile(path, tensors)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    value_of: Callable[[str], np.ndarray],
) -> None:
    """Writes a file, holding one tensor at a time.

    Args:
        path: the file.
        tensors: shape and type of each tensor, in the order to write.
        value_of: the tensor of a name; called once for each, in that order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name, (shape, dtype) in tensors.items():
            value = value_of(name)
            assert value.shape == shape and value.dtype == dtype, name
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def _without_doubles(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = collections.Counter(name for name, _ in pairs)
        for name, count in counts.items():
            if count > 1:
                raise UserError(f"{path}: {name} is there {count} times; save the model again")
        return dict(pairs)

    return build


def _tensor_info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    try:
        start, stop = entry["data_offsets"]
        info = TensorInfo(entry["dtype"], tuple(entry["shape"]), data + start, data + stop)
        dtype = _DTYPES.get(info.dtype_name)
        whole = dtype is None or stop - start == math.prod(info.shape) * dtype.itemsize
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: the entry of {name} makes no sense; fetch it again") from error
    if not (whole and 0 <= start <= stop):
        raise UserError(
            f"{path}: {name} of type {info.dtype_name} and shape {list(info.shape)} cannot be "
            f"bytes {start} to {stop}; fetch it again"
        )
    return info
