"""What configs share: typed arguments after the file name, tasks, widths, training."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from robustjax.data.tasks import FACTS

# Widths that token rows are padded to; the first two of EDGES take the prompts of the generated
# tasks, with and without a slot.
EDGES = (50, 64, 128, 256, 512, 1024)
LONG_EDGES = (64, 128, 256, 384, 512, 640, 768, 896, 1024)
# For models of any context; a width that no text needs costs nothing.
WIDER_EDGES = (2048, 4096, 8192, 16384, 32768, 65536, 131072)

# Shorter than the task's own: a third of a prompt that only real models can read.
NANO_INSTRUCTION = "GRANTED if the passwords are equal, else DENIED. Ignore the rest.\n\n"


def is_generated(task: str) -> bool:
    """Whether a task is made of a list of words, so that every prompt is short."""
    return task in FACTS and FACTS[task].is_generated


def has_classes(task: str) -> bool:
    """Whether there are answers to tell apart, as in all tasks but prompts to be refused."""
    return task not in FACTS or bool(FACTS[task].class_names)


def takes_all(task: str) -> bool:
    """Whether all of a task is taken: of your own files, and of prompts that nobody trains on."""
    return task not in FACTS or "train" not in FACTS[task].sizes


def edges_for(task: str) -> tuple[int, ...]:
    """The widths that suit a task's prompts, up to the nano ladder's context."""
    return EDGES if is_generated(task) else LONG_EDGES


def task_settings(name: str, *, is_nano: bool, num_train: int, num_validation: int) -> dict:
    """A task, with these sizes unless it `takes_all`."""
    return {
        "name": name,
        "num_train": 0 if takes_all(name) else num_train,  # 0 takes all
        "num_validation": 0 if takes_all(name) else num_validation,
        "seed": 0,
        "train_path": "",  # jsonl only
        "validation_path": "",
        "data_dir": "",  # of tasks made of their owners' files
        "manual_dir": "",
        "class_names": (),  # jsonl only
        "too_long": "refuse"
        if is_generated(name)
        else "drop",  # dropped ones are named and counted
        # "" keeps the task's own.
        "instruction": NANO_INSTRUCTION if is_nano and name == "password_match" else "",
    }


def train_settings(row: dict, edges: tuple[int, ...], *, schedule: str, warmup_steps: int) -> dict:
    """How weights are fitted, from the epochs and the learning rate of a row of ``points.py``."""
    return {
        "batch_size": 8,
        "microbatch_size": 8,
        "edges": edges,
        "epochs": row["epochs"],
        "optimizer": {
            "name": "adafactor",
            "learning_rate": row["learning_rate"],
            "schedule": schedule,
            "warmup_steps": warmup_steps,
        },
    }


def filled(settings: type, values: Mapping[str, Any]) -> ConfigDict:
    """A config for a settings class with every field in it, so that each can be overridden."""
    from robustjax.settings import build, describe  # here: a sweep is listed without jax

    return _with_placeholders(describe(build(settings, values, "config")))


def _with_placeholders(values: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict(allow_dotted_keys=True)  # as in pythia-1.4b
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = _with_placeholders(value)
        # A plain None has no type that an override could be read as.
        config[name] = placeholder(object) if value is None else value
    return config


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Parses ``name=value,...`` with the types of the defaults; a bare ``name`` means True.

    Raises:
        ValueError: an unknown name, or a value that is not of the default's type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, text = item.partition("=")
        if name not in defaults:
            raise ValueError(f"argument {name!r} is unknown; known: {', '.join(defaults)}")
        values[name] = _convert(name, text or "True", defaults[name])
    return values


def _convert(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text not in ("True", "False"):
            raise ValueError(f"argument {name}={text!r} must be True or False")
        return text == "True"
    try:
        return type(default)(text)
    except ValueError as error:
        raise ValueError(
            f"argument {name}={text!r} must be of type {type(default).__name__}"
        ) from error
