"""Small values as bytes, for other processes of the run: numbers, text, arrays, and trees of these.

They are JSON, so reading what another process sent runs no code, which a pickle would.
"""

import base64
import json
from typing import Any

import numpy as np

_TUPLE, _DICT, _ARRAY = "tuple", "dict", "array"


def packed(value: Any) -> bytes:
    """A value as bytes.

    Args:
        value: None, a boolean, number or text; an array or scalar of one of NumPy's own types;
            or a list, tuple or dict of such values. Named tuples become tuples.

    Raises:
        TypeError: it is, or holds, something else.
    """
    return json.dumps(_plain(value), separators=(",", ":")).encode()


def unpacked(data: bytes) -> Any:
    """The value that ``packed`` made these bytes of."""
    return _value(json.loads(data))


def _plain(value: Any) -> Any:
    """The value without what JSON does not know: everything but lists is marked by what it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(one) for one in value]}
    if isinstance(value, dict):
        return {_DICT: [[_plain(key), _plain(one)] for key, one in value.items()]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "OV":
        content = base64.b64encode(value.tobytes()).decode("ascii")
        return {_ARRAY: [value.dtype.str, list(value.shape), content]}
    raise TypeError(f"a {type(value).__name__} cannot be sent to another process: {value!r}")


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(one) for one in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == _ARRAY:
        dtype, shape, data = content
        return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
    if kind == _TUPLE:
        return tuple(_value(one) for one in content)
    return {_value(key): _value(one) for key, one in content}
