"""The tasks by name. A new task is one file with a `build` and one line in the table below."""

from robustjax.data.prompts import Task
from robustjax.data.tasks import jsonl, password_match, word_length
from robustjax.data.tasks.config import TaskConfig
from robustjax.errors import UserError

__all__ = ["TASKS", "TaskConfig", "load_task"]

_BUILDERS = {
    "jsonl": jsonl.build,
    "password_match": password_match.build,
    "word_length": word_length.build,
}

TASKS: tuple[str, ...] = tuple(_BUILDERS)
"""Names of the tasks."""

TOO_LONG = ("refuse", "drop")
"""What can become of an example that does not fit; see `robustjax.data.lengths`."""


def load_task(config: TaskConfig) -> Task:
    """Generates or reads the task that `config` names.

    Raises:
        UserError: no such task, or its files or sizes do not fit.
    """
    if config.name not in _BUILDERS:
        raise UserError(f"task {config.name!r} does not exist: choose one of {', '.join(TASKS)}")
    for name in ("num_train", "num_validation", "seed"):
        if getattr(config, name) < 0:
            raise UserError(f"task.{name}={getattr(config, name)}: must not be negative")
    if config.too_long not in TOO_LONG:
        raise UserError(f"task.too_long={config.too_long!r}: choose one of {', '.join(TOO_LONG)}")
    return _BUILDERS[config.name](config)
