"""The command line: ``robustjax COMMAND [--flags]``.

A mistake of the user's is one line on stderr and status 2; 1 is a failure of ours, with its
traceback.
"""

import ast
import contextlib
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from robustjax.errors import UserError

_LIBRARY_PREFIX = "Error whilst parsing config file"

_OVERVIEW = """\
usage: robustjax COMMAND [--flags]

  study   run a ladder of models through training, attack, hardening and attack
            robustjax study --config=configs/smoke.py --workdir=runs/demo
  report  figures, tables and fits from the records of one or more workdirs
            robustjax report runs/demo --out=report
  convert a model from Hugging Face's format to ours, or back
            robustjax convert --from=EleutherAI/pythia-70m --to=models/pythia-70m

A config takes arguments and overrides: --config=FILE.py:name=value,... --config.a.b=value
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_OVERVIEW, end="")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in _COMMANDS:
            raise UserError(f"no command {command!r}; known: {', '.join(_COMMANDS)}")
        if "--help" in rest or "-h" in rest:
            print(_OVERVIEW, end="")
            return 0
        return _COMMANDS[command](rest)
    except UserError as error:
        print(f"robustjax {command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"robustjax {command}: interrupted; the same command goes on", file=sys.stderr)
        return 130


def _study(arguments: list[str]) -> int:
    arguments = [_quote_names(argument) for argument in arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "the study", flag_values=values, sys_argv=["robustjax", *arguments]
    )
    flags.DEFINE_string("workdir", None, "where everything goes", flag_values=values)
    unexpected = _parse(values, arguments, required=("config", "workdir"))
    if unexpected:
        raise UserError(f"{unexpected[0]!r} is no flag; did you mean --workdir={unexpected[0]}?")
    config_values = _values_of(values.config)
    # After parsing, so that a mistake in a flag costs no time.
    from robustjax.runtime.compilation import keep_compiled_programs
    from robustjax.settings import StudyConfig, build
    from robustjax.study import run_study

    config = build(StudyConfig, config_values, "config")
    keep_compiled_programs(values.workdir)
    print(run_study(config, values.workdir))
    return 0


def _report(arguments: list[str]) -> int:
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "folder of the report", flag_values=values)
    flags.DEFINE_string("title", None, "heading", flag_values=values)
    workdirs = _parse(values, arguments, required=("out",))
    if not workdirs:
        raise UserError("no workdir given: robustjax report WORKDIR... --out=FOLDER")
    from robustjax.analysis.report import write_report

    print(write_report(workdirs, values.out, title=values.title))
    return 0


def _convert(arguments: list[str]) -> int:
    values = flags.FlagValues()
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    text("from", None, "a model: folder, scaling point, or name on the Hugging Face hub")
    text("to", None, "a new folder")
    number("num_classes", 0, "makes a classifier of a base model", lower_bound=0)
    number("seed", 0, "of that classifier's head")
    number("max_shard_bytes", None, "size of a safetensors file", lower_bound=1)
    flags.DEFINE_bool("allow_torch_bin", False, "reads torch's weight files", flag_values=values)
    unexpected = _parse(values, arguments, required=("from", "to"))
    if unexpected:
        raise UserError(f"{unexpected[0]!r} is no flag; did you mean --from={unexpected[0]}?")
    from robustjax.models.convert import convert

    given = {name: value for name, value in values.flag_values_dict().items() if value is not None}
    print(convert(given.pop("from"), given.pop("to"), **given))
    return 0


def _parse(values: flags.FlagValues, arguments: list[str], required: Sequence[str]) -> list[str]:
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
    elif isinstance(error, flags.Error):
        return str(error)
    text = str(error)
    with contextlib.suppress(ValueError, SyntaxError):
        text = ast.literal_eval(text)  # key errors show their message as a literal
    return f"{type(error).__name__} in the config: {text}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


_COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "study": _study,
    "report": _report,
    "convert": _convert,
}

if __name__ == "__main__":
    sys.exit(main())
