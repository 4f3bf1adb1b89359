"""Checkpoints: trees of arrays with a little JSON, written by Orbax.

A checkpoint is a folder `arrays/` (Orbax), `metadata.json`, and `COMPLETE.json`, which is written
last and lists every array, and every file with its size and CRC-32. A folder without it was torn by
a kill and counts for nothing; one that no longer matches it is damaged, and the checkpoint before
it is used. The same works on a local disk and in an object store, which has no atomic rename of
folders.

A run's checkpoints are written while it goes on: `Checkpoints.save` returns as soon as the arrays
may change again.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from robustjax.errors import UserError
from robustjax.runtime import distributed
from robustjax.runtime.files import StrPath, disk_trouble, is_remote, read_json, write_json
from robustjax.runtime.fingerprints import fingerprint, fingerprints
from robustjax.runtime.rows import put

_ARRAYS, _METADATA, _COMPLETE = "arrays", "metadata.json", "COMPLETE.json"
_STEP_FOLDER = re.compile(r"\d{8,}")
_RESTORED_AT_ONCE_GB = 0.5

_log = logging.getLogger(__name__)


class _DamagedError(Exception):
    """A checkpoint is torn, or its files are not those that were written."""


@dataclasses.dataclass(eq=False)
class Checkpoints:
    """The checkpoints of one training run, in numbered folders; a context manager.

    Leaving it waits for the checkpoint that is being written, also when the run was stopped by an
    error or by the user. After a run that ended well it also deletes what a kill left behind (an
    older step, whole or in parts).

    Attributes:
        folder: where they are, local or `gs://`.
        keep: how many of the newest to keep. With 1 there is nothing to fall back on when the disk
            damages the newest; a kill during a save never costs the one before it.
    """

    folder: StrPath
    keep: int = 1
    _writing: "_Write | None" = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.keep < 1:
            raise ValueError(f"keep={self.keep} is below 1")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            if self._writing is not None:
                self._writing.finish()  # without the others, which may not come here
            return
        latest = self.latest_step()
        if latest is not None and distributed.is_primary():
            self._prune(latest)

    def save(self, step: int, arrays: PyTree, metadata: dict[str, Any]) -> None:
        """Begins to save a step, and to delete the ones no longer kept once it is saved.

        Returns when arrays and metadata may be changed, deleted or donated; the files are written
        meanwhile.
        Waits for the save before, whose failure, if it failed, is raised here. Steps after `step`
        are deleted too: they are leftovers from before a fall-back.

        Args:
            step: number of the step, >= 0.
            arrays: a tree with JAX or NumPy arrays or NumPy scalars as leaves.
            metadata: what JSON can hold; no NaN, no infinities.

        Raises:
            ValueError: a leaf is not an array, or the metadata do not fit into JSON.
        """
        if step < 0:
            raise ValueError(f"step {step} is negative")
        self.wait()
        self._writing = _Write(
            self._step_folder(step), _copies(arrays), metadata, lambda: self._prune(step)
        )

    def wait(self) -> None:
        """Waits until what `save` began is done; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.wait()

    def _prune(self, newest: int) -> None:
        """Deletes all but the newest whole steps; the primary process does it."""
        whole = [step for step in self._whole_steps() if step <= newest]
        for name in self._step_names():
            if int(name) not in whole[-self.keep :]:
                folder = epath.Path(self.folder) / name
                (folder / _COMPLETE).unlink(missing_ok=True)  # in parts it must not look whole
                folder.rmtree()

    def latest_step(self) -> int | None:
        """The newest step that was saved to the end, or None."""
        self.wait()
        steps = distributed.from_primary(self._whole_steps, f"checkpoints in {self.folder}")
        return steps[-1] if steps else None

    def restore(self, like: PyTree, step: int | None = None) -> tuple[int, PyTree, dict[str, Any]]:
        """Restores a step.

        Args:
            like: the tree wanted: leaves are arrays or `jax.ShapeDtypeStruct`, whose shardings
                the restored arrays get (without one, the process's first device; a NumPy leaf is
                restored as NumPy).
            step: which one; None takes the newest that is not damaged, and warns of each that is.

        Returns:
            The step restored, the arrays, the metadata.

        Raises:
            UserError: there is none, it is damaged, or its arrays differ from `like`.
        """
        self.wait()
        found = distributed.from_primary(self._steps, f"checkpoints in {self.folder}")
        steps = found[::-1] if step is None else [step]
        for candidate in steps:
            folder = self._step_folder(candidate)
            try:
                return candidate, *_read(folder, like)
            except _DamagedError as error:
                if step is not None:
                    raise UserError(f"checkpoint {folder}: {error}; choose another step") from error
                _log.warning("checkpoint %s: %s; trying the one before it", folder, error)
        what = "every checkpoint is damaged" if steps else "no checkpoint"
        raise UserError(f"{self.folder}: {what}; check the folder, or delete it to start afresh")

    def _step_folder(self, step: int) -> epath.Path:
        return epath.Path(self.folder) / f"{step:08d}"

    def _steps(self) -> list[int]:
        """Steps with a marker, ascending, whether or not it is readable."""
        folder = epath.Path(self.folder)
        return sorted(
            int(name) for name in self._step_names() if (folder / name / _COMPLETE).exists()
        )

    def _step_names(self) -> list[str]:
        folder = epath.Path(self.folder)
        if not folder.exists():
            return []
        return [path.name for path in folder.iterdir() if _STEP_FOLDER.fullmatch(path.name)]

    def _whole_steps(self) -> list[int]:
        """Steps with a readable marker, ascending."""
        whole = []
        for step in self._steps():
            with contextlib.suppress(_DamagedError):
                _read_marker(self._step_folder(step))
                whole.append(step)
        return whole


def check_kept(number: int) -> None:
    """Raises UserError unless a setting `keep_checkpoints` keeps any."""
    if number < 1:
        raise UserError(f"keep_checkpoints={number} must be at least 1")


def save_params(folder: StrPath, params: PyTree, metadata: dict[str, Any]) -> None:
    """Saves a finished model, and returns when it is on the disk.

    Replaces a model in that folder; other files there are left alone.

    Args:
        folder: where to.
        params: as `arrays` of `Checkpoints.save`.
        metadata: what JSON can hold.
    """
    _Write(epath.Path(folder), params, metadata).wait()


def load_params(folder: StrPath, like: PyTree, dtype: str = "") -> tuple[PyTree, dict[str, Any]]:
    """Loads what `save_params` saved.

    Args:
        folder: where from.
        like: as in `Checkpoints.restore`; of shapes alone (`jax.ShapeDtypeStruct`) with `dtype`.
        dtype: what arrays become as they are read: no device holds both; empty keeps theirs.

    Returns:
        The parameters, the metadata.

    Raises:
        UserError: there is no whole model in the folder, or its arrays differ from `like`.
    """
    try:
        return _read(epath.Path(folder), like, dtype)
    except _DamagedError as error:
        raise UserError(f"model {folder}: {error}; save or download it again") from error


def iterate_params(folder: StrPath, like: PyTree) -> Iterator[tuple[str, Any]]:
    """Loads what `save_params` saved array after array, so that no more than one is in memory.

    Args:
        folder: where from.
        like: as in `Checkpoints.restore`.

    Yields:
        The path of an array, such as `blocks.00.query.kernel`, and the array.

    Raises:
        UserError: as `load_params`.
    """
    folder, wanted = epath.Path(folder), _named_leaves(like)
    try:
        _check(folder, wanted)
    except _DamagedError as error:
        raise UserError(f"model {folder}: {error}; save or download it again") from error
    for name, leaf in wanted.items():
        yield name, _restore(folder, {name: leaf})[name]


def load_metadata(folder: StrPath) -> dict[str, Any]:
    """Reads the metadata of a saved model without its arrays (to learn what to load them into)."""
    try:
        marker = _read_marker(epath.Path(folder))
        _check_files(epath.Path(folder), {_METADATA: marker["files"][_METADATA]})
    except _DamagedError as error:
        raise UserError(f"model {folder}: {error}; save or download it again") from error
    return read_json(epath.Path(folder) / _METADATA)


class _Write:
    """A folder that is being written, in a thread of its own; every process has to make one.

    Args:
        folder: where to.
        arrays: must not change before `wait` returns.
        metadata: what JSON can hold; may change.
        and_then: what the primary process does in that thread when all is on the disk.
    """

    def __init__(
        self,
        folder: epath.Path,
        arrays: PyTree,
        metadata: dict[str, Any],
        and_then: Callable[[], None] = lambda: None,
    ):
        self._folder, self._and_then = folder, and_then
        named = _named_leaves(arrays)
        try:
            self._metadata = json.loads(json.dumps(metadata, allow_nan=False))  # as it is now
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint metadata: {error}; put numbers that may be infinite, and arrays, "
                "into the tree of arrays"
            ) from error
        if distributed.is_primary():
            # The marker goes first: a kill in between leaves a torn checkpoint, not a mixed one.
            (folder / _COMPLETE).unlink(missing_ok=True)
            if (folder / _ARRAYS).exists():
                (folder / _ARRAYS).rmtree()
            folder.mkdir(parents=True, exist_ok=True)
        distributed.barrier(f"clearing {folder}")
        self._signatures = {name: _signature(leaf) for name, leaf in named.items()}
        saveable = {
            name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
            for name, leaf in named.items()
            if leaf.size  # Orbax refuses empty arrays; the marker says enough to make them again
        }
        # Two folders may be written at a time, and processes meet in each by a name of its own.
        options = ocp.options.MultiprocessingOptions(
            barrier_sync_key_prefix=f"write_{next(_NUMBERS)}"
        )
        self._checkpointer = ocp.AsyncCheckpointer(
            _handler(multiprocessing_options=options), multiprocessing_options=options
        )
        if saveable:  # and an empty tree
            self._checkpointer.save(_absolute(folder / _ARRAYS), args=ocp.args.PyTreeSave(saveable))
        self._done: Future[None] = _WRITER.submit(self._complete)

    def _complete(self) -> None:
        # Orbax's part ends when those of all processes do, so what follows needs no barrier.
        self._checkpointer.close()
        if distributed.is_primary():
            write_json(self._folder / _METADATA, self._metadata)
            files = fingerprints(self._folder, (_METADATA, _ARRAYS))
            marker = {"arrays": self._signatures, "files": files}
            write_json(self._folder / _COMPLETE, marker | {"crc32": _crc32_of_json(marker)})
            self._and_then()

    def finish(self) -> None:
        """Returns when this process has done its part; raises what went wrong with it."""
        self._done.result()

    def wait(self) -> None:
        """Returns when the folder is whole, in all processes; raises what went wrong."""
        self.finish()
        distributed.barrier(f"saving {self._folder}")


_WRITER = ThreadPoolExecutor(1, "checkpoint")
_NUMBERS = itertools.count()
"""Of the folders that this process wrote: all processes write the same ones in the same order."""


def _copies(tree: PyTree) -> PyTree:
    """Leaves that stay as they are when the originals are changed or donated.

    Orbax copies NumPy arrays, and arrays of an accelerator, before it returns; but of a JAX array
    on a CPU it writes the very memory.
    """

    def copy(leaf: Any) -> Any:
        is_on_cpu = isinstance(leaf, jax.Array) and jax.default_backend() == "cpu"
        return jnp.copy(leaf) if is_on_cpu else leaf

    return jax.tree.map(copy, tree)


def _read(folder: epath.Path, like: PyTree, dtype: str = "") -> tuple[PyTree, dict[str, Any]]:
    wanted = _named_leaves(like)
    _check(folder, wanted)
    if dtype:
        wanted = {name: leaf.update(dtype=dtype) for name, leaf in wanted.items()}
    restored = _restore(folder, wanted)
    leaves = [
        restored[name][()] if isinstance(leaf, np.generic) else restored[name]
        for name, leaf in wanted.items()
    ]
    tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return tree, read_json(folder / _METADATA)


def _check(folder: epath.Path, wanted: dict[str, Any]) -> None:
    """Checks that a folder is whole and holds these arrays; one process does, for all."""

    def found() -> str:
        try:
            marker = _read_marker(folder)
            _check_files(folder, marker["files"])
            _check_arrays(folder, marker["arrays"], wanted)
        except _DamagedError as error:
            return str(error)
        return ""

    if damage := distributed.from_primary(found, f"the check of {folder}"):
        raise _DamagedError(damage)


def _restore(folder: epath.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Some of the arrays of a folder."""
    restored = {name: _empty_array(leaf) for name, leaf in wanted.items() if not leaf.size}
    item = {name: leaf for name, leaf in wanted.items() if leaf.size}
    if item:
        # A few at a time, lest a model be in memory twice; the limit must let the largest pass.
        largest = max(leaf.size * leaf.dtype.itemsize for leaf in item.values())
        limit = max(_RESTORED_AT_ONCE_GB, 1.001 * largest / 1e9)
        arguments = {name: _restore_args(leaf) for name, leaf in item.items()}
        restored |= ocp.Checkpointer(_handler(restore_concurrent_gb=limit)).restore(
            _absolute(folder / _ARRAYS),
            args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True),
        )
    return restored


def _handler(**options: Any) -> ocp.PyTreeCheckpointHandler:
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_worth_showing)  # once: a set by identity
    # OCDBT puts all arrays into a few files: for 65 small arrays about 0.14 s a save, against
    # 0.25 s with a folder for each.
    return ocp.PyTreeCheckpointHandler(use_ocdbt=True, **options)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    """Keeps Orbax's notes out of the run's output; failures are raised too, and told in a line."""
    if record.name == "asyncio":
        return disk_trouble(record.exc_info[1] if record.exc_info else None) is None
    return "orbax" not in pathlib.PurePath(record.pathname).parts


def _absolute(path: epath.Path) -> epath.Path:
    """What Orbax asks for; an object store's path is absolute as it stands."""
    return path if is_remote(path) else epath.Path(os.path.abspath(path))


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves by their path, such as `params.layers.query.kernel`, in flattening order."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ValueError(
                f"checkpoint: {name} is a {type(leaf).__name__}, not an array; "
                "put plain values into the metadata"
            )
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(
                f"checkpoint: {name} is a typed key; save jax.random.key_data(key) instead"
            )
        if name in named:
            raise ValueError(f"checkpoint: two arrays are called {name}; rename one")
        named[name] = leaf
    return named


def _signature(leaf: Any) -> list[Any]:
    return [str(leaf.dtype), list(leaf.shape)]


def _check_arrays(folder: epath.Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in sorted(stored.keys() | wanted.keys()):
        there = stored.get(name)
        here = _signature(wanted[name]) if name in wanted else None
        if there != here:
            raise UserError(
                f"checkpoint {folder}: array {name} is {_show(there)} there, {_show(here)} here; "
                "load it with the model and optimizer it was saved with"
            )


def _show(signature: list[Any] | None) -> str:
    if signature is None:
        return "absent"
    dtype, shape = signature
    return f"{dtype}[{','.join(map(str, shape))}]"


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, np.ndarray | np.generic):
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(sharding=_sharding(leaf), global_shape=leaf.shape, dtype=leaf.dtype)


def _empty_array(leaf: Any) -> Any:
    empty = np.zeros(leaf.shape, leaf.dtype)
    is_numpy = isinstance(leaf, np.ndarray | np.generic)
    return empty if is_numpy else put(empty, _sharding(leaf))


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    return getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])


def _read_marker(folder: epath.Path) -> dict[str, Any]:
    if not (folder / _COMPLETE).exists():
        raise _DamagedError(f"no {_COMPLETE}, so it was not saved to the end")
    try:
        marker = json.loads((folder / _COMPLETE).read_text())
        if marker.pop("crc32") == _crc32_of_json(marker):
            return marker
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise _DamagedError(f"{_COMPLETE} is garbage")


def _crc32_of_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _check_files(folder: epath.Path, expected: dict[str, list[int | None]]) -> None:
    for name, known in expected.items():
        path = folder / name
        if not path.exists():
            raise _DamagedError(f"{name} is missing")
        if fingerprint(path) != known:
            raise _DamagedError(f"{name} is not what was written")
