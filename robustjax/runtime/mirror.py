"""Workdirs in an object store: a local folder that is brought down, worked in, and mirrored up.

An object store cannot append to a file or rename a folder, and its files cannot be mapped into
memory. So a command works in a local folder, as ever, and a thread mirrors it up, now and then and
at the end. The bucket is what counts: when the command is started again, here or on another
machine, the folder is first made what the bucket says.

Runs may be killed anywhere because they write things in an order. A mirror must not change the
order: `DONE` without the records before it would be believed. Therefore

- a pass mirrors one moment. The folder is frozen by hard links, and that only counts if nothing
  changed meanwhile; of files that grow, the part counts that was there;
- a pass counts as a whole or not at all. `_mirror/note.json` names all files, with size, CRC-32 and
  the object that holds each; replacing that one object is what makes a pass count. A file that is
  there already, and every marker, goes beside its place first, and to its place after that, markers
  last: who only looks at the bucket does not see `DONE` too early either.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import signal
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from robustjax.errors import UserError
from robustjax.runtime import distributed, interrupts
from robustjax.runtime.files import StrPath, disk_trouble, is_remote

FOLDER_VARIABLE = "ROBUSTJAX_MIRROR"
"""Names the folder of the local copies; ~/.cache/robustjax/mirror by default."""

SECONDS_VARIABLE = "ROBUSTJAX_MIRROR_SECONDS"
"""Names the seconds from one pass to the next; 30 by default. Whatever a kill loses is younger."""

_NOTE, _STAGED = "_mirror/note.json", "_mirror/{}/{}"
_MARKERS = ("DONE", "COMPLETE.json")
_NOT_MIRRORED = ("xla_cache", "_mirror")
_CHUNK_BYTES = 1 << 24
_AT_ONCE = 8
_FREEZES = 20
_PAUSE_SECONDS = 0.05
_TRIED_AGAIN_AFTER_SECONDS = (1.0, 5.0, 20.0)

_log = logging.getLogger(__name__)

_Signature = tuple[int, int, int]  # inode, size, time of the last change


@dataclasses.dataclass(frozen=True)
class _File:
    """A file as the note has it: size, CRC-32, and the object that holds it."""

    size: int
    crc32: int
    at: str


@dataclasses.dataclass(frozen=True)
class _Note:
    """What the bucket holds.

    Attributes:
        writer: who wrote it; another one works in the workdir if it is not ours.
        generation: passes that counted.
        files: by their path below the workdir.
        waste: objects that may be there and count for nothing.
    """

    writer: str = ""
    generation: int = 0
    files: Mapping[str, _File] = dataclasses.field(default_factory=dict)
    waste: tuple[str, ...] = ()


@contextlib.contextmanager
def workdir(address: StrPath) -> Iterator[Path]:
    """The local folder of a workdir, which is mirrored while the block runs, and at its end.

    Args:
        address: the workdir; one that is local is its own folder.

    Raises:
        UserError: the bucket cannot be reached, another process works in the workdir, or several
            processes share the run: each has a folder of its own then.
    """
    if not is_remote(address):
        yield Path(address)
        return
    _refuse_several_processes(address)
    folder = _place(address)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, address), _telling(address, folder):
        mirror = Mirror(address, folder)
        with _reaching(address):
            mirror.bring()
        pusher = _Pusher(mirror)
        pusher.start()
        try:
            yield folder
        finally:
            pusher.stop()
            with interrupts.finishing(), _reaching(address):
                _push_at_last(mirror)


def brought(path: StrPath, *, may_be_new: bool = False) -> Path:
    """A local copy of something that is only read: a model, or a run for a report.

    Of a part of a workdir, also the files at the top of the workdir come, which tell its history.

    Args:
        path: local, which is returned as it is, or remote.
        may_be_new: there may be nothing yet.

    Raises:
        UserError: there is nothing though there should be, or the bucket cannot be reached.
    """
    if not is_remote(path):
        return Path(path)
    folder = _place(path)
    with _telling(path, folder), _reaching(path):
        top = epath.Path(path)
        while not (top / _NOTE).exists():
            if top.parent == top or len(top.parts) <= 3:  # '/', 'gs', the bucket
                if may_be_new and not epath.Path(path).exists():
                    return folder
                return _without_note(epath.Path(path), folder)
            top = top.parent
        files, inside = _read_note(top).files, epath.Path(path).relative_to(top).as_posix()
        for name, file in files.items():
            if inside == "." or f"{name}/".startswith(f"{inside}/") or "/" not in name:
                _download(top, name, file, _place(top) / name)
        for name in _scan(folder):
            if (folder / name).relative_to(_place(top)).as_posix() not in files:
                (folder / name).unlink()  # of an earlier copy
    return folder


def as_given(path: StrPath, address: StrPath, folder: Path) -> str:
    """The path of a result as the user gave the workdir: in the bucket, not in the copy."""
    if not is_remote(address):
        return str(path)
    return str(epath.Path(address) / os.path.relpath(path, folder))


class Mirror:
    """A local folder and its workdir in the bucket.

    Args:
        address: the workdir.
        folder: where the command works.
    """

    def __init__(self, address: StrPath, folder: Path):
        self._top, self._folder = epath.Path(address), folder
        self._frozen = folder.with_name(f".{folder.name}.frozen")
        self._writer = uuid.uuid4().hex
        self._note = _Note()
        self._known: dict[str, _Signature] = {}  # what is in its place in the bucket, as it is here
        self._one_pass = threading.Lock()

    def bring(self) -> None:
        """Makes the folder what the bucket says, and the bucket's note ours."""
        note = _read_note(self._top)
        for name, file in note.files.items():
            _download(self._top, name, file, self._folder / name)
        for name in _scan(self._folder):
            if name not in note.files:
                (self._folder / name).unlink()
        there = _scan(self._folder)
        self._known = {name: there[name] for name, file in note.files.items() if file.at == name}
        self._write_note(dataclasses.replace(note, writer=self._writer))
        self._delete_waste()

    def push(self) -> bool:
        """Mirrors the folder as it is now; False if it never stood still for a moment.

        Raises:
            UserError: another process works in the workdir.
        """
        with self._one_pass:
            try:
                frozen = self._freeze()
                if frozen is not None:
                    self._push(frozen)
                return frozen is not None
            finally:
                shutil.rmtree(self._frozen, ignore_errors=True)

    def _push(self, frozen: dict[str, _Signature]) -> None:
        old, changed = self._note.files, {}
        for name, signature in frozen.items():
            if self._known.get(name) != signature:
                is_beside = name in old or _is_marker(name)
                staged = _STAGED.format(self._note.generation + 1, name)
                changed[name] = staged if is_beside else name
        gone = [name for name in old if name not in frozen]
        if not changed and not gone:
            return
        waste = {*self._note.waste, *changed.values()}  # unless this pass counts
        self._check_writer()
        self._write_note(dataclasses.replace(self._note, waste=tuple(waste)))
        files = {name: file for name, file in old.items() if name in frozen}
        files |= self._upload(changed, frozen)
        waste |= {file.at for file in old.values()}
        waste -= {file.at for file in files.values()} | files.keys()
        self._check_writer()
        # From here on the pass counts.
        generation = self._note.generation + 1
        self._write_note(_Note(self._writer, generation, files, tuple(waste)))
        beside = [name for name, file in files.items() if file.at != name]
        self._upload({name: name for name in beside if not _is_marker(name)}, frozen)
        # What marks the whole comes after what marks its parts.
        for name in sorted(filter(_is_marker, beside), key=lambda name: -name.count("/")):
            self._upload({name: name}, frozen)
        waste |= {files[name].at for name in beside}
        files |= {name: dataclasses.replace(files[name], at=name) for name in beside}
        self._write_note(_Note(self._writer, generation, files, tuple(waste)))
        self._known = dict(frozen)
        self._delete_waste()

    def _freeze(self) -> dict[str, _Signature] | None:
        """Links to all files as they are at one moment; None if there was none."""
        for _ in range(_FREEZES):
            shutil.rmtree(self._frozen, ignore_errors=True)
            before = _scan(self._folder)
            with contextlib.suppress(FileNotFoundError):  # it was just replaced or deleted
                for name in before:
                    link = self._frozen / name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    os.link(self._folder / name, link)
                if _scan(self._folder) == before:
                    return before
            threading.Event().wait(_PAUSE_SECONDS)
        return None

    def _upload(
        self, objects: Mapping[str, str], frozen: Mapping[str, _Signature]
    ) -> dict[str, _File]:
        """Writes frozen files to objects, some at a time."""

        def upload(name: str) -> _File:
            size, crc = frozen[name][1], 0
            with (
                (self._frozen / name).open("rb") as source,
                (self._top / objects[name]).open("wb") as target,
            ):
                left = size
                while left and (chunk := source.read(min(left, _CHUNK_BYTES))):
                    target.write(chunk)
                    crc, left = zlib.crc32(chunk, crc), left - len(chunk)
            if left:
                raise OSError(f"{name} became shorter while it was mirrored")
            return _File(size, crc, objects[name])

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(zip(objects, pool.map(upload, objects), strict=True))

    def _delete_waste(self) -> None:
        def delete(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                (self._top / name).unlink()

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(delete, self._note.waste))
        self._note = dataclasses.replace(self._note, waste=())  # the next note will say so

    def _check_writer(self) -> None:
        if _read_note(self._top).writer != self._writer:
            raise UserError(
                f"{self._top}: another process works in this workdir now; this one stops"
            )

    def _write_note(self, note: _Note) -> None:
        (self._top / _NOTE).write_text(json.dumps(dataclasses.asdict(note)))
        self._note = note


def _push_at_last(mirror: Mirror) -> None:
    """The pass at the end, when nothing writes any more; a bad connection is tried again."""
    for seconds in _TRIED_AGAIN_AFTER_SECONDS:
        try:
            if mirror.push():
                return
            problem = "files are still being written"
        except UserError:
            raise
        except Exception as error:  # an object store has exceptions of its own
            problem = f"{type(error).__name__}: {error}"
        _log.warning("mirror: %s; trying again", problem)
        threading.Event().wait(seconds)
    if not mirror.push():
        raise UserError("files are still being written, so that the last pass could not be made")


class _Pusher(threading.Thread):
    """Mirrors now and then; a bad connection is tried again."""

    def __init__(self, mirror: Mirror):
        super().__init__(name="mirror", daemon=True)
        self._mirror = mirror
        self._seconds = float(os.environ.get(SECONDS_VARIABLE, "30"))
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._mirror.push()
            except UserError as error:  # nobody waits for this thread: the command has to stop
                _log.error("%s", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except Exception as error:  # an object store has exceptions of its own
                _log.warning("mirror: %s: %s; trying again", type(error).__name__, error)

    def stop(self) -> None:
        """Returns when no pass is being done any more."""
        self._ended.set()
        self.join()


def _scan(folder: Path) -> dict[str, _Signature]:
    """All files that are mirrored, by their path below the folder."""
    found = {}
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if _is_mirrored(name)]
        for name in filter(_is_mirrored, names):
            with contextlib.suppress(FileNotFoundError):
                stat = os.stat(f"{place}/{name}")
                signature = stat.st_ino, stat.st_size, stat.st_mtime_ns
                found[(here / name).as_posix()] = signature
    return found


def _is_mirrored(name: str) -> bool:
    """Not the compiled programs, nor what is being written beside its place."""
    return not (name in _NOT_MIRRORED or name.startswith(".") or "orbax-checkpoint-tmp" in name)


def _is_marker(name: str) -> bool:
    return Path(name).name in _MARKERS


def _read_note(top: epath.Path) -> _Note:
    path = top / _NOTE
    if not path.exists():
        return _Note()
    try:
        values = json.loads(path.read_text())
        files = {name: _File(**file) for name, file in values["files"].items()}
        return _Note(**values | {"files": files, "waste": tuple(values["waste"])})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a note of a mirror ({error!r}); use another workdir"
        ) from error


def _download(top: epath.Path, name: str, file: _File, target: Path) -> None:
    """Brings a file, unless it is here already."""
    if target.is_file() and (target.stat().st_size, _crc32(target)) == (file.size, file.crc32):
        return
    _copy(top / file.at, target)
    if (target.stat().st_size, _crc32(target)) != (file.size, file.crc32):
        raise UserError(f"{top / file.at}: not what was written; use another workdir")


def _copy(source: epath.Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    with source.open("rb") as reader, temporary.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
    temporary.replace(target)


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _without_note(source: epath.Path, folder: Path) -> Path:
    """Brings a folder that no mirror made, such as a model that was copied to the bucket."""
    if not source.exists():
        raise UserError(f"{source}: there is nothing; check the address")
    if source.is_dir():
        for path in source.iterdir():
            _without_note(path, folder / path.name)
    else:
        _copy(source, folder)
    return folder


def _place(address: StrPath) -> Path:
    """The local folder of an address."""
    scheme, _, rest = os.fspath(address).partition("://")
    base = os.environ.get(FOLDER_VARIABLE) or "~/.cache/robustjax/mirror"
    return Path(base).expanduser() / scheme / rest.strip("/")


@contextlib.contextmanager
def _alone(folder: Path, address: StrPath) -> Iterator[None]:
    """Keeps other processes of this machine out of the folder."""
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{os.fspath(address)}: another process works in this workdir; wait for it"
            ) from error
        yield


@contextlib.contextmanager
def _telling(address: StrPath, folder: Path) -> Iterator[None]:
    """Errors name the address that was given, not the copy."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(folder), os.fspath(address))) from error


@contextlib.contextmanager
def _reaching(address: StrPath) -> Iterator[None]:
    """Tells in a line what helps if the bucket cannot be reached."""
    try:
        yield
    except (UserError, interrupts.PreemptedError):
        raise
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        raise UserError(
            f"{os.fspath(address)}: Google Cloud Storage needs gcsfs: pip install 'robustjax[gcs]'"
        ) from error
    except Exception as error:  # an object store has exceptions of its own
        if disk_trouble(error):
            raise
        raise UserError(
            f"{os.fspath(address)}: cannot be reached ({type(error).__name__}: {error}); check the "
            "address and your access (gcloud auth application-default login); then the same "
            "command goes on from the last pass"
        ) from error


def _refuse_several_processes(address: StrPath) -> None:
    if distributed.count() > 1:
        raise UserError(
            f"{os.fspath(address)}: several processes need a folder that all of them see; mount "
            "a shared disk (Filestore, NFS) on every host, and give its folder as --workdir"
        )
