"""The owners' files: downloaded, or taken from a folder, and known again by their checksums."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from robustjax.data.tasks.rows import sha256
from robustjax.errors import UserError
from robustjax.runtime.files import StrPath, write_text

RECORD = "checksums.json"


@dataclass(frozen=True)
class Source:
    """A file of the owner's.

    Attributes:
        url: where its owner publishes it.
        file_name: what it is called in a folder of files downloaded by hand.
        sha256: its checksum, if somebody who had the file published one; else the checksum of the
            first download is what later ones are compared with.
    """

    url: str
    file_name: str
    sha256: str = ""


@dataclass(frozen=True)
class Found:
    """A file of the owner's that is here.

    Attributes:
        path: the file.
        sha256: its checksum.
        is_downloaded: whether it was fetched by us, and not laid there by the user.
    """

    path: Path
    sha256: str
    is_downloaded: bool

    def discard(self) -> None:
        """Deletes a download, so that the next try fetches it again."""
        if self.is_downloaded:
            self.path.unlink(missing_ok=True)
            self.path.with_name(self.path.name + ".INFO").unlink(missing_ok=True)


def find(
    sources: Mapping[str, Source], download: Any, data_dir: StrPath, manual_dir: StrPath | None
) -> dict[str, Found]:
    """All files of a task, checked.

    Args:
        sources: what is needed, by a name of ours.
        download: TFDS's download manager; not asked if there is a folder of files.
        data_dir: has the record of checksums.
        manual_dir: folder with files downloaded by hand.

    Raises:
        UserError: a file is missing, cannot be downloaded, or is not the one that it should be; a
            wrong download is deleted.
    """
    paths = _laid(sources, manual_dir) if manual_dir else _downloaded(sources, download)
    recorded = _read_record(data_dir)
    found = {}
    for name, path in paths.items():
        source, one = sources[name], Found(path, sha256(path), not manual_dir)
        expected = source.sha256 or recorded.get(source.url, one.sha256)
        if one.sha256 != expected:
            one.discard()
            raise UserError(_mismatch(source, one, expected, data_dir))
        found[name] = one
    return found


def record(sources: Mapping[str, Source], found: Mapping[str, Found], data_dir: StrPath) -> None:
    """Notes the checksums of files that a data set could be built from."""
    known = _read_record(data_dir)
    new = {sources[name].url: one.sha256 for name, one in found.items()}
    text = json.dumps(dict(sorted((known | new).items())), indent=1)
    write_text(epath.Path(data_dir) / RECORD, text + "\n")


def _laid(sources: Mapping[str, Source], manual_dir: StrPath) -> dict[str, Path]:
    folder = Path(manual_dir).expanduser()
    paths = {name: folder / source.file_name for name, source in sources.items()}
    missing = [sources[name] for name, path in paths.items() if not path.is_file()]
    if missing:
        wanted = ", ".join(f"{one.file_name} ({one.url})" for one in missing)
        raise UserError(f"--manual_dir={manual_dir} has no {wanted}: download it into that folder")
    return paths


def _downloaded(sources: Mapping[str, Source], download: Any) -> dict[str, Path]:
    paths = {}
    for name, source in sources.items():
        try:
            paths[name] = Path(download.download(source.url))
        except Exception as error:  # of requests, of urllib3, of TFDS, of the disk
            raise UserError(
                f"{source.url} cannot be downloaded ({type(error).__name__}: {error}): try again, "
                f"or lay it as {source.file_name} into a folder and give --manual_dir=FOLDER"
            ) from error
    return paths


def _mismatch(source: Source, one: Found, expected: str, data_dir: StrPath) -> str:
    where = f"{source.url} (now deleted)" if one.is_downloaded else str(one.path)
    if source.sha256:
        why = "its publisher says: download it again"
    else:
        why = (
            "the file had when a data set was first built from it: find out what changed, and "
            f"remove it from {epath.Path(data_dir) / RECORD} if you trust the new one"
        )
    return f"{where} has sha256 {one.sha256[:16]}..., not {expected[:16]}... as {why}"


def _read_record(data_dir: StrPath) -> dict[str, str]:
    path = epath.Path(data_dir) / RECORD
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text())
        if not all(isinstance(one, str) for item in known.items() for one in item):
            raise ValueError("not an object of texts")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it") from error
    return known
