"""What commands with a workdir of their own have in common: claiming it, data that fits, words."""

import sys
from pathlib import Path
from typing import Any

from robustjax import given_model
from robustjax.data.lengths import fit, named_difference
from robustjax.data.prompts import Task
from robustjax.data.tasks import TaskConfig
from robustjax.data.tokens import Tokenizer
from robustjax.given_model import GivenModel
from robustjax.runtime import distributed
from robustjax.runtime.runlog import check_writable, config_hash, write_manifest
from robustjax.runtime.stages import Stage
from robustjax.settings import describe


def say(command: str, line: str) -> None:
    """Tells the user, once; stdout is kept for the path of the result."""
    if distributed.is_primary():
        print(f"{command}: {line}", file=sys.stderr)


def claim(
    command: str,
    folder: Path,
    leaves: dict[str, Any],
    schema_version: int,
    *,
    config: Any,
    seeds: dict[str, int],
    task: Task,
) -> Stage | None:
    """Claims a workdir for a run and writes its manifest; None, and says so, if it is done.

    Args:
        command: what messages begin with.
        folder: the workdir.
        leaves: what defines the result; with ``model`` and perhaps ``companion``.
        schema_version: of the leaves.
        config: the whole settings.
        seeds: by name.
        task: the data.

    Raises:
        UserError: the workdir cannot be written to, or belongs to another configuration.
    """
    check_writable(folder)
    stage = Stage(str(folder), config_hash(leaves, schema_version), leaves)
    if stage.is_done():
        say(command, "done already; nothing to do")
        return None
    stage.start()
    write_manifest(
        folder,
        config=describe(config),
        config_hash=stage.config_hash,
        seeds=seeds,
        extra={"data": task.source}
        | {name: leaves[name] for name in ("model", "companion") if name in leaves},
    )
    return stage


def only_what_fits(
    command: str, task: Task, tokenizer: Tokenizer, room: int, policy: Any, positions: list[float]
) -> Task:
    """The task without the examples that are too long, which it tells.

    Args:
        command: what messages begin with.
        task: the data; a split may be empty.
        tokenizer: what the model reads with.
        room: tokens that an example may have.
        policy: `config.task.too_long`.
        positions: where attacks put their slots.

    Raises:
        UserError: as `robustjax.data.lengths.fit`.
    """
    fitting = fit(task, tokenizer, room, policy, positions)
    left_out = [
        f"{named_difference(given, kept)} {name}"
        for name, given, kept in (
            ("training", task.train, fitting.train),
            ("validation", task.validation, fitting.validation),
        )
        if given
    ]
    if fitting.source["dropped_too_long"] != dict.fromkeys(fitting.source["dropped_too_long"], 0):
        say(command, f"dropped {' and '.join(left_out)} examples of more than {room} tokens")
    return fitting


def note_instruction(command: str, given: GivenModel, task: TaskConfig) -> None:
    """Tells if a model was trained with another instruction than it is asked with."""
    trained_with = given_model.read_instruction(given)
    if trained_with is not None and trained_with != task.instruction:
        say(
            command,
            f"note: config.task.instruction={task.instruction!r}, but the model was trained with "
            f"{trained_with!r}",
        )
