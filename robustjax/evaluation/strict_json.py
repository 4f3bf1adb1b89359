"""Strict JSON: text that depends on the value alone, and readers that name the field at fault."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def canonical_json(value: Any, indent: int | None = None) -> str:
    """JSON text that depends on the value alone: sorted keys, ASCII, null for what is not finite.

    Args:
        value: nested mappings, sequences and scalars; numpy scalars and arrays are accepted.
        indent: spaces a level; None for one line.
    """
    separators = (",", ":") if indent is None else (",", ": ")

    def encode(item: Any) -> str:
        return json.dumps(
            item,
            sort_keys=True,
            allow_nan=False,
            indent=indent,
            separators=separators,
            default=_numpy_to_python,
        )

    try:
        return encode(value)
    except ValueError:  # the rare value that is not finite: only then pay for a copy
        return encode(_null_if_not_finite(value))


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    # Always the same name: what a killed process left is written over and renamed by the next.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON by the standard: `NaN` and `Infinity`, which Python would accept, are errors.

    Raises:
        ValueError: the text is not JSON.
    """
    return json.loads(text, parse_constant=_no_constant)


Parser = Callable[[Any, str], Any]
"""Turns a JSON value, given with its name, into a field's value; a ValueError names the field."""


def exactly(kind: type, words: str) -> Parser:
    """Parser of one JSON type; true is no integer and 1.0 is none either."""

    def parse(value: Any, name: str) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{name} must be {words}, not {json.dumps(value)[:60]}")
        return value

    return parse


def number(value: Any, name: str) -> float:
    """Parse a number; null stands for one that was not finite and becomes NaN."""
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise ValueError(f"{name} must be a number or null, not {json.dumps(value)[:60]}")
    return float(value)


def optional(parser: Parser) -> Parser:
    """Parser that also takes null, as None."""
    return lambda value, name: None if value is None else parser(value, name)


def list_of(parser: Parser) -> Parser:
    """Parser of a list whose items another parser takes."""

    def parse(value: Any, name: str) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, not {json.dumps(value)[:60]}")
        return [parser(item, f"{name}[{index}]") for index, item in enumerate(value)]

    return parse


def fields(
    value: Any,
    name: str,
    parsers: Mapping[str, Parser],
    may_lack: Mapping[str, Parser] | None = None,
) -> dict[str, Any]:
    """Parse an object that has exactly the fields of `parsers`, and perhaps some of `may_lack`."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, not {json.dumps(value)[:60]}")
    given = {key: parser for key, parser in (may_lack or {}).items() if key in value}
    expected = {**parsers, **given}
    if value.keys() != expected.keys():
        missing = sorted(expected.keys() - value.keys())
        unknown = sorted(value.keys() - expected.keys())
        raise ValueError(f"{name} lacks fields {missing} and has unknown fields {unknown}")
    return {key: parser(value[key], f"{name}.{key}") for key, parser in expected.items()}


integer = exactly(int, "an integer")
boolean = exactly(bool, "true or false")
string = exactly(str, "a string")


def _numpy_to_python(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _null_if_not_finite(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _null_if_not_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_if_not_finite(item) for item in value]
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; numbers that are not finite are written as null")
