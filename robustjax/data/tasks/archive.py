"""Reading archives of others: nothing is unpacked to the disk, and what looks hostile is refused.

TFDS has helpers for this, but they import TensorFlow.
"""

import gzip
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from robustjax.errors import UserError

MAX_MEMBER_BYTES = 64 * 2**20
"""Of one member; one that claims to be larger holds no texts."""


def read_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The files of a tar.gz archive in the archive's order.

    Args:
        path: the archive.
        pattern: regular expression that the whole name of a wanted file matches.

    Yields:
        Name and content of each wanted file. All members are checked, wanted or not.

    Raises:
        UserError: it is no whole archive, a name leads out of it, a member is a link or a device,
            or one is too large.
    """
    wanted = re.compile(pattern)
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                _check(path, member)
                if member.isfile() and wanted.fullmatch(member.name):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
            # What is left is padding; only at its end does gzip compare its checksum.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole tar.gz archive ({error}): delete it and download it again"
        ) from error


def _check(path: Path, member: tarfile.TarInfo) -> None:
    parts = posixpath.normpath(member.name).split("/")
    if member.name.startswith("/") or ".." in parts or "\\" in member.name:
        raise UserError(f"{path}: member {member.name!r} leads out of the archive; do not use it")
    if not (member.isfile() or member.isdir()):
        raise UserError(
            f"{path}: member {member.name!r} is a link or a device, not a file; do not use it"
        )
    if member.size > MAX_MEMBER_BYTES:
        raise UserError(
            f"{path}: member {member.name!r} claims {member.size:,} bytes; a text has at most "
            f"{MAX_MEMBER_BYTES:,}, so do not use it"
        )
