"""What files are known by: their sizes and checksums."""

import zlib
from collections.abc import Iterable, Iterator

from etils import epath

from robustjax.runtime.files import is_remote

_CHUNK_BYTES = 1 << 24


def fingerprints(folder: epath.Path, names: Iterable[str]) -> dict[str, list[int | None]]:
    """Size and CRC-32 of files by their paths below a folder.

    Args:
        folder: where they are.
        names: of files, and of folders of files, in it.
    """
    files = [path for name in names for path in _walk(folder / name)]
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in files}


def fingerprint(path: epath.Path) -> list[int | None]:
    """Size and CRC-32 of a file; of one in an object store the size alone."""
    size = path.stat().length
    if is_remote(path):  # object stores check contents themselves; reading all back would be slow
        return [size, None]
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return [size, crc]


def _walk(path: epath.Path) -> Iterator[epath.Path]:
    if not path.exists():
        return
    if path.is_dir():
        for one in sorted(path.iterdir()):
            yield from _walk(one)
    else:
        yield path
