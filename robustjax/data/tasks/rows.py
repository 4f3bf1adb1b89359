"""Rows of a file: JSONL, plain or gzip, and Parquet. Every error names the file and the line."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from robustjax.errors import UserError


def read_objects(path: Path, name: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file.

    Args:
        path: a file of JSON objects, one a line (`.gz`: compressed), or a table (`.parquet`).
        name: what messages call the file.

    Yields:
        The 0-based line or row, and its fields; blank lines are passed over.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object.
    """
    name = name or str(path)
    read = _read_parquet if path.suffix == ".parquet" else _read_jsonl
    try:
        yield from read(path, name)
    except OSError as error:
        raise UserError(
            f"{name} cannot be read ({error.strerror or error}): give a JSONL, JSONL.gz or "
            "Parquet file"
        ) from error


def sha256(path: Path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_text(path: Path, line: int, fields: dict[str, Any], field: str) -> str:
    """A field of a row that must be a text of valid Unicode.

    Raises:
        UserError: it is missing, or something else.
    """
    value = fields.get(field)
    if not isinstance(value, str):
        raise UserError(f"{path}, line {line + 1}: field {field!r} is {value!r}: expected a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{path}, line {line + 1}: field {field!r} holds a lone surrogate: it is not valid "
            "Unicode"
        ) from None
    return value


def _read_jsonl(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{name} is not a whole gzip file: {error}") from error
    for index, line in enumerate(data.split(b"\n")):
        if line.strip():
            yield index, _parse(name, index, line)


def _parse(name: str, index: int, line: bytes) -> dict[str, Any]:
    where = f"{name}, line {index + 1}"
    try:
        fields = json.loads(line.decode("utf-8-sig" if index == 0 else "utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 ({error.reason})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise UserError(f"{where}: is {type(fields).__name__}, not a JSON object")
    return fields


def _read_parquet(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        try:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from enumerate(rows)
        except pyarrow.ArrowException as error:
            raise UserError(f"{name} is not a whole Parquet file: {error}") from error
