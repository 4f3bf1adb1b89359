"""The command line: ``robustjax COMMAND [--flags]``.

A mistake of the user's is one line on stderr and status 2; 1 is a failure of ours, with its traceback.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from robustjax.errors import UserError

_OVERVIEW = """\
usage: robustjax COMMAND [--flags]

  study   run a ladder of models through training, attack, hardening and attack
            robustjax study --config=configs/smoke.py --workdir=runs/demo
  report  figures, tables and fits from the records of one or more workdirs
            robustjax report runs/demo --out=report

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
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "the study", flag_values=values)
    flags.DEFINE_string("workdir", None, "where everything goes", flag_values=values)
    unexpected = _parse(values, arguments, required=("config", "workdir"))
    if unexpected:
        raise UserError(f"{unexpected[0]!r} is no flag; did you mean --workdir={unexpected[0]}?")
    if not isinstance(values.config, ConfigDict):
        raise UserError("--config: its get_config must return an ml_collections.ConfigDict")
    # After parsing, so that a mistake in a flag costs no time.
    from robustjax.settings import build
    from robustjax.study import StudyConfig, run_study

    config = build(StudyConfig, values.config.to_dict(), "config")
    _use_compilation_cache(values.workdir)
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
            if not getattr(values, name):
                raise UserError(f"--{name} is missing")
    except flags.Error as error:
        raise UserError(str(error)) from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        what = str(error).strip("'\"")
        raise UserError(f"{type(error).__name__} in the config: {what}") from error
    return rest


def _config_path(arguments: list[str]) -> str | None:
    """What stands behind ``--config=`` or ``--config``."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, has_value, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if has_value else following
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _use_compilation_cache(workdir: str) -> None:
    """Keeps compiled programs beside the results, so that a resumed run does not compile again."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and "://" not in workdir:
        jax.config.update("jax_compilation_cache_dir", str(Path(workdir).resolve() / "xla_cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


_COMMANDS: dict[str, Callable[[list[str]], Any]] = {"study": _study, "report": _report}

if __name__ == "__main__":
    sys.exit(main())
