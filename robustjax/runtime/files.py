"""Writing small files so that a reader never sees half of one."""

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from etils import epath

from robustjax.errors import UserError
from robustjax.runtime.distributed import is_primary

StrPath = str | os.PathLike[str]


def is_remote(path: StrPath) -> bool:
    """Whether the path is in an object store (`gs://bucket/...`)."""
    return "://" in os.fspath(path)


def write_text(path: StrPath, text: str) -> None:
    """Writes a file whole or not at all, and creates its folder.

    On a local disk through a temporary neighbour, `fsync` and rename; in an object store a write is
    atomic by itself.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: StrPath, data: bytes) -> None:
    """Writes a file whole or not at all; see ``write_text``.

    Of several processes of a run only the primary one writes.
    """
    if not is_primary():
        return
    if is_remote(path):
        epath.Path(path).write_bytes(data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed process left is written over and renamed by the next.
    temporary = target.with_name(f".{target.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    _fsync_folder(target.parent)


def _fsync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the file system lets a folder be synced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_json(path: StrPath, value: Any) -> None:
    """Writes JSON atomically: sorted keys, indent 1, arrays as lists, NaN and infinity as null."""
    text = json.dumps(plain(value), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: StrPath) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        text = epath.Path(path).read_text()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{os.fspath(path)}: no such file; check the path") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{os.fspath(path)}: not a JSON file ({error}); delete it, or restore it from a copy"
        ) from error


def plain(value: Any) -> Any:
    """Turns a value into what JSON knows: arrays to lists, NaN and infinities to None.

    Raises:
        TypeError: a value or a key that JSON has no word for.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str | int) or isinstance(key, bool)]
        if wrong:
            raise TypeError(f"JSON keys are strings, not {wrong[0]!r} ({type(wrong[0]).__name__})")
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars, without importing either
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def check_writable(folder: StrPath, name: str = "workdir") -> None:
    """Creates a folder and proves that files can be written there, before any compute is spent.

    Of several processes of a run only the primary one tries.

    Raises:
        UserError: when they cannot.
    """
    if not is_primary():
        return
    path = epath.Path(folder)
    probe = path / f".write-test-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # object stores have exceptions of their own
        raise UserError(
            f"{name} {os.fspath(folder)}: no write permission "
            f"({type(error).__name__}: {getattr(error, 'strerror', None) or error}); "
            f"choose another --{name}"
        ) from error


_DISK_TROUBLES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "make the disk writable again",
    errno.EIO: "check the disk",
}
# tensorstore, which writes checkpoints, tells the system's error in its text alone.
_SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'|\[OS error (\d+)")


def disk_trouble(error: BaseException | None) -> str | None:
    """What is wrong with the disk and what helps, if that is what an error comes from.

    Looks at what raised it as well. Nothing that was written before is lost.
    """
    while error is not None:
        found = _SYSTEM_ERROR.search(str(error))
        code = int(found[1] or found[2]) if found else getattr(error, "errno", None)
        if code in _DISK_TROUBLES:
            where = getattr(error, "filename", None)
            what = f"{os.strerror(code)}{f': {where}' if where else ''}"
            return f"{what}; {_DISK_TROUBLES[code]}, and the same command goes on"
        error = error.__cause__ or error.__context__
    return None
