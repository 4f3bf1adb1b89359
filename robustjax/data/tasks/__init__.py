"""The tasks by name. A new task is a folder with its facts and its builder, and a line below."""

import dataclasses
import importlib

from robustjax.data.prompts import Example, Task
from robustjax.data.tasks import (
    generated,
    harmless,
    helpful,
    imdb,
    jsonl,
    password_match,
    spam,
    stored,
    strongreject,
    word_length,
)
from robustjax.data.tasks.config import TaskConfig
from robustjax.errors import UserError

__all__ = ["FACTS", "TASKS", "TaskConfig", "load_task", "require_classes"]

_MODULES = (harmless, helpful, imdb, password_match, spam, strongreject, word_length)

FACTS = {module.FACTS.name: module.FACTS for module in _MODULES}
"""What is known of each named task."""

TASKS: tuple[str, ...] = (*FACTS, "jsonl")
"""Names of the tasks."""

TOO_LONG = ("refuse", "drop")
"""What can become of an example that does not fit; see `robustjax.data.lengths`."""

_OF_FILES = ("train_path", "validation_path", "class_names")
_OF_STORED = ("data_dir", "manual_dir")


def load_task(config: TaskConfig) -> Task:
    """Generates, reads or builds the task that `config` names.

    Raises:
        UserError: no such task, or its files or sizes do not fit.
    """
    if config.name not in TASKS:
        raise UserError(f"task {config.name!r} does not exist: choose one of {', '.join(TASKS)}")
    for name in ("num_train", "num_validation", "seed"):
        if getattr(config, name) < 0:
            raise UserError(f"task.{name}={getattr(config, name)}: must not be negative")
    if config.too_long not in TOO_LONG:
        raise UserError(f"task.too_long={config.too_long!r}: choose one of {', '.join(TOO_LONG)}")
    if config.name == "jsonl":
        _refuse(config, _OF_STORED, "a task of your own files")
        return jsonl.build(config)
    _refuse(config, _OF_FILES, f"task {config.name!r}", "leave it empty, or set task.name='jsonl'")
    return _instructed(_load_named(config), config.instruction)


def require_classes(config: TaskConfig) -> None:
    """Raises UserError if the task is not for classifiers."""
    facts = FACTS.get(config.name)
    if facts is not None and not facts.class_names:
        raise UserError(
            f"task.name={config.name!r} has no classes to tell apart: attack a language model on "
            "it (robustjax attack ... --config.model.head=lm)"
        )


def _load_named(config: TaskConfig) -> Task:
    facts = FACTS[config.name]
    if not facts.is_generated:
        return stored.load(config, facts)
    _refuse(config, _OF_STORED, f"the generated task {config.name!r}")
    pairs = importlib.import_module(f"{__name__}.{facts.name}.pairs")
    return generated.load(config, facts, pairs.generate)


def _instructed(task: Task, instruction: str) -> Task:
    """The task with another instruction, if one is given."""
    if not instruction:
        return task

    def told(example: Example) -> Example:
        return dataclasses.replace(example, instructions=instruction)

    train, validation = (tuple(map(told, split)) for split in (task.train, task.validation))
    return dataclasses.replace(task, train=train, validation=validation)


def _refuse(
    config: TaskConfig, names: tuple[str, ...], task: str, remedy: str = "leave it empty"
) -> None:
    """Raises UserError if a setting is given that has no effect on the task."""
    for name in names:
        if getattr(config, name):
            raise UserError(
                f"task.{name}={getattr(config, name)!r} has no effect on {task}: {remedy}"
            )
