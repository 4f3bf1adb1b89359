"""Flags of commands, with a config file among them; whatever is wrong becomes one line.

`--config=FILE.py[:name=value,...]` names a file, `--config.a.b=value` overrides a leaf of it.
"""

import ast
import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from robustjax.errors import UserError

_LIBRARY_PREFIX = "Error whilst parsing config file"


def parse_config_and_workdir(arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Parses the flags of a command that has a config and a workdir.

    Args:
        arguments: what stands after the command's name.

    Returns:
        The config as nested dicts, and the workdir.

    Raises:
        UserError: a flag is unknown or missing, or the config does not work.
    """
    config, values = parse_config(arguments, lambda values: None)
    return config, values.workdir


def parse_config(
    arguments: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> tuple[dict[str, Any], flags.FlagValues]:
    """Parses the flags of a command that has a config, a workdir and flags of its own.

    Args:
        arguments: what stands after the command's name.
        define: adds the command's own flags.

    Returns:
        The config as nested dicts, and the values of all flags.

    Raises:
        UserError: a flag is unknown or missing, or the config does not work.
    """
    arguments = [_quote_names(argument) for argument in arguments]
    values = flags.FlagValues()
    define(values)
    config_flags.DEFINE_config_file(
        "config", None, "what to do", flag_values=values, sys_argv=["robustjax", *arguments]
    )
    flags.DEFINE_string("workdir", None, "where everything goes", flag_values=values)
    unexpected = parse(values, arguments, required=("config", "workdir"))
    if unexpected:
        raise UserError(f"{unexpected[0]!r} is no flag; did you mean --workdir={unexpected[0]}?")
    return _values_of(values.config), values


def parse(values: flags.FlagValues, arguments: Sequence[str], required: Sequence[str]) -> list[str]:
    """Parses flags (and with them the config file); returns what is no flag.

    A config file is code of the user's: whatever it raises becomes one line.
    """
    path = _config_path(arguments)
    if path is not None:
        file = Path(path.split(":", 1)[0])
        if not file.is_file():
            raise UserError(f"--config={file}: no such file")
        # Configs import one another as configs.NAME, from whatever folder the command is run in.
        sys.path.insert(0, str(file.resolve().parent.parent))
    try:
        rest = values(["robustjax", *arguments])[1:]
        for name in required:
            if not values[name].present or values[name].value == "":
                raise UserError(f"--{name} is missing")
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(_explain(error)) from error
    return rest


def _config_path(arguments: Sequence[str]) -> str | None:
    """What stands behind ``--config=`` or ``--config``."""
    for index, argument in enumerate(arguments):
        name, has_value, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if has_value else "".join(arguments[index + 1 : index + 2])
    return None


def _quote_names(argument: str) -> str:
    """Lets an override say points.nano-27k.x or points.pythia-1.4b.x.

    The config library splits paths as Python does and needs points["pythia-1.4b"].x. No field
    begins with a digit, so what does belongs to the name before it.
    """
    name, has_value, value = argument.partition("=")
    if not name.startswith("--config.") or "[" in name:
        return argument
    first, *parts = re.split(r"\.(?!\d)", name)
    quoted = [f".{part}" if part.isidentifier() else f'["{part}"]' for part in parts]
    return first + "".join(quoted) + has_value + value


def _values_of(config: Any) -> dict[str, Any]:
    """The nested dicts of a config; the library keeps an OSError until the config is touched."""
    try:
        if hasattr(config, "to_dict"):
            return config.to_dict()
    except OSError as error:
        raise UserError(str(error)) from error
    raise UserError("--config: its get_config must return an ml_collections.ConfigDict")


def _explain(error: BaseException) -> str:
    """What went wrong with flags or config, without the traceback that the config library adds."""
    wrapped: BaseException | None = error
    while wrapped is not None and not str(wrapped).startswith(_LIBRARY_PREFIX):
        wrapped = wrapped.__cause__ or wrapped.__context__
    if wrapped is not None and wrapped.__context__ is not None:
        error = wrapped.__context__
        if isinstance(error, UserError):
            return str(error)
    elif isinstance(error, flags.Error):
        return str(error)
    text = str(error)
    with contextlib.suppress(ValueError, SyntaxError):
        text = ast.literal_eval(text)  # key errors show their message as a literal
    return f"{type(error).__name__} in the config: {text}"
