"""Tasks made of their owners' files: built once with TFDS, then read from the disk."""

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from robustjax.data.prompts import Example, Task
from robustjax.data.tasks import sources
from robustjax.data.tasks.config import TaskConfig, taken
from robustjax.data.tasks.facts import TaskFacts
from robustjax.errors import UserError
from robustjax.runtime.files import is_remote

if TYPE_CHECKING:  # importing TFDS takes a moment, which only these tasks need
    from robustjax.data.tasks.builder import TaskBuilder

_DOWNLOADS = "~/.cache/robustjax/downloads"
"""Where files are fetched to when the data set itself goes to an object store."""
_UNFINISHED = "*.tmp.*"
"""Folder in which TFDS has a file while it is downloaded."""


def prepare(facts: TaskFacts, data_dir: str = "", manual_dir: str = "") -> "TaskBuilder":
    """Builds a task's data set, unless it is there.

    Args:
        facts: the task.
        data_dir: see `TaskConfig`.
        manual_dir: see `TaskConfig`.

    Raises:
        UserError: a file of the owner's cannot be had, or is not as it should be. Nothing of the
            data set is left then, and a download that was wrong is deleted.
    """
    builder = find(facts, data_dir)
    if builder.is_prepared():
        return builder
    builder.manual_dir = manual_dir
    try:
        # What TFDS says of its progress; results alone go to stdout.
        folder = _download_dir(builder)
        with _tidy(builder, folder), contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_dir=folder)
    except OSError as error:
        # Another process may have been faster; what it built is the same.
        if (again := find(facts, data_dir)).is_prepared():
            return again
        raise UserError(
            f"task {facts.name!r} cannot be written to {builder.data_dir} "
            f"({error.strerror or error}): give --data_dir=FOLDER"
        ) from error
    if builder.SOURCES:
        sources.record(builder.SOURCES, builder.found, builder.root)
    return builder


def find(facts: TaskFacts, data_dir: str = "") -> "TaskBuilder":
    """The builder of a task, which knows whether its data set is there."""
    module = importlib.import_module(f"robustjax.data.tasks.{facts.name}.builder")
    where = {"data_dir": os.path.expanduser(data_dir)} if data_dir else {}
    builder: TaskBuilder = module.Builder(file_format="array_record", **where)
    return builder


def load(config: TaskConfig, facts: TaskFacts) -> Task:
    """The task from the disk; its data set is built first if it is not there.

    Args:
        config: says where the data set is and how many examples to take; a seed other than 0
            shuffles each split once more.
        facts: what is known of the task.

    Raises:
        UserError: the data set cannot be built, or has fewer examples than are asked for.
    """
    builder = prepare(facts, config.data_dir, config.manual_dir)
    splits: dict[str, list[Example]] = {}
    for stream, split in enumerate(("train", "validation"), start=1):
        available = builder.info.splits[split].num_examples if split in facts.sizes else 0
        count = taken(config, split, available)
        order = np.arange(available)
        if config.seed:
            order = np.random.default_rng((config.seed, stream)).permutation(available)
        splits[split] = read(builder, split, order[:count])
    source = dict(builder.info.metadata) | {"version": str(builder.version)}
    return facts.task(splits["train"], splits["validation"], source)


def read(builder: "TaskBuilder", split: str, places: Int[np.ndarray, " N"]) -> list[Example]:
    """The examples at some places of a split."""
    from robustjax.data.tasks.builder import from_row

    if not len(places):
        return []
    rows = builder.as_data_source(split=split)
    return [from_row(row) for row in rows.__getitems__([int(place) for place in places])]


@contextlib.contextmanager
def _tidy(builder: "TaskBuilder", downloads: Path) -> Iterator[None]:
    """Turns what TFDS makes of our errors back, and leaves nothing that is half written.

    TFDS removes what it has written of the data set by itself, but not of a download. A whole
    file that an error of ours is about is not kept either.
    """
    before = set(downloads.rglob(_UNFINISHED))
    try:
        yield
    except Exception as error:
        ours = _user_error(error)
        if ours is None:
            raise
        for one in builder.found.values():
            one.discard()
        raise ours from error
    finally:
        for path in set(downloads.rglob(_UNFINISHED)) - before:
            shutil.rmtree(path, ignore_errors=True)


def _user_error(error: BaseException | None) -> UserError | None:
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _download_dir(builder: "TaskBuilder") -> Path:
    """Where files are fetched to: beside the data sets, unless these are in an object store."""
    is_here = not is_remote(builder.root)
    return Path(builder.root) / "downloads" if is_here else Path(_DOWNLOADS).expanduser()
