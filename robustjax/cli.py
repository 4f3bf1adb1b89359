"""The command line: ``robustjax COMMAND [--flags]``.

A mistake of the user's is one line on stderr and status 2; 1 is a failure of ours, with its
traceback; 130 an interrupt, and 75 a notice of preemption (SIGTERM) or the loss of another process
of the run, after which the same command goes on.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from robustjax.command_flags import parse, parse_config, parse_config_and_workdir
from robustjax.errors import UserError
from robustjax.runtime import distributed, interrupts, mirror
from robustjax.runtime.files import disk_trouble
from robustjax.runtime.shortage import memory_shortage

_OVERVIEW = """\
usage: robustjax COMMAND [--flags]

  study     run a ladder of models through training, attack, hardening and attack
              robustjax study --config=configs/smoke.py --workdir=runs/demo
              --dry_run prints its stages, what they cost and how long they take here
  finetune  train one model on clean texts
              robustjax finetune --config=configs/finetune.py:point=nano-27k --workdir=runs/model
  advtrain  harden one model against attacks, round by round
              robustjax advtrain --config=configs/advtrain.py:attack=gcg \\
                  --config.model.path=runs/model --workdir=runs/hardened
  attack    attack one model: a scaling point, a folder, or the workdir of a training
              robustjax attack --config=configs/attack.py:point=nano-27k,attack=gcg \\
                  --config.model.path=runs/model --workdir=runs/attack
  plan      what a run takes on a TPU slice, compiled for it without one
              robustjax plan --config=configs/attack.py:point=pythia-12b --topology=v5e:4x4 \\
                  --workdir=runs/plan
              --suggest looks for the cheapest mesh, batch and pass of an attack
              --local proposes the largest batch of an attack for the device that is here
  report    figures, tables and fits from the records of one or more workdirs
              robustjax report runs/demo --out=report
  data      the tasks: list them, prepare one, show examples
              robustjax data show --task=password_match --n=3
  convert   a model from Hugging Face's format to ours, or back
              robustjax convert --from=EleutherAI/pythia-70m --to=models/pythia-70m

A config takes arguments and overrides: --config=FILE.py:name=value,... --config.a.b=value
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    Of several processes, one that does not end well does not return: see `distributed.end`.
    """
    status, reason = _main(argv)
    distributed.end(status, reason)
    return status


def _main(argv: Sequence[str] | None) -> tuple[int, str]:
    """The exit status, and the reason if it is not 0."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_OVERVIEW, end="")
        return (0, "") if arguments else (2, "no command")
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in _COMMANDS:
            raise UserError(f"no command {command!r}; known: {', '.join(_COMMANDS)}")
        if "--help" in rest or "-h" in rest:
            print(_OVERVIEW, end="")
            return 0, ""
        with interrupts.heard():
            status = _COMMANDS[command](rest)
        sys.stdout.flush()
        return status, ""
    except UserError as error:
        return _told(command, 2, _one_line(error))
    except BrokenPipeError:  # the reader has seen enough: robustjax data list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, ""
    except KeyboardInterrupt:
        return _told(command, 130, "interrupted; the same command goes on")
    except interrupts.PreemptedError:
        status = interrupts.PREEMPTED_STATUS
        return _told(command, status, "preempted; the same command goes on")
    except Exception as error:
        if trouble := disk_trouble(error) or memory_shortage(error):
            return _told(command, 2, _one_line(trouble))
        distributed.fail(error)
        raise


def _told(command: str, status: int, line: str) -> tuple[int, str]:
    """Tells the user why a command ends with this status."""
    print(f"robustjax {command}: {line}", file=sys.stderr)
    return status, line


def _study(arguments: list[str]) -> int:
    rest = [one for one in arguments if one != "--dry_run"]
    values, workdir = parse_config_and_workdir(rest)
    # After parsing, so that a mistake in a flag costs no time.
    from robustjax.settings import StudyConfig, build
    from robustjax.study import run_study

    if len(rest) < len(arguments):
        from robustjax.study_forecast import print_forecast

        settings = build(StudyConfig, values, "config")
        print_forecast(settings, mirror.brought(workdir, may_be_new=True))
        return 0
    return _run(run_study, StudyConfig, values, workdir)


def _finetune(arguments: list[str]) -> int:
    values, workdir = parse_config_and_workdir(arguments)
    from robustjax.commands.finetune import FinetuneRunConfig, run_finetune_command

    return _run(run_finetune_command, FinetuneRunConfig, values, workdir)


def _advtrain(arguments: list[str]) -> int:
    values, workdir = parse_config_and_workdir(arguments)
    from robustjax.commands.advtrain import AdvtrainRunConfig, run_advtrain_command

    return _run(run_advtrain_command, AdvtrainRunConfig, values, workdir)


def _attack(arguments: list[str]) -> int:
    values, workdir = parse_config_and_workdir(arguments)
    from robustjax.commands.attack import AttackRunConfig, run_attack_command

    return _run(run_attack_command, AttackRunConfig, values, workdir)


def _plan(arguments: list[str]) -> int:
    rest = [one for one in arguments if one != "--local"]
    if len(rest) < len(arguments):
        values, workdir = parse_config_and_workdir(rest)
        from robustjax.commands.attack import AttackRunConfig
        from robustjax.commands.plan_local import run_local_plan

        return _run(run_local_plan, AttackRunConfig, values, workdir)
    from robustjax.planning.environment import for_tpu_compiler

    for_tpu_compiler()  # before the config is read, which imports jax
    values, given = parse_config(arguments, define_slice_flags)
    from robustjax.commands.plan_slice import SliceRequest, run_config_class, run_slice_plan
    from robustjax.commands.plan_suggest import run_suggest

    if given.topology:
        values["topology"] = given.topology
    request = SliceRequest(given.price, given.prompt_tokens)
    command = functools.partial(run_suggest if given.suggest else run_slice_plan, request=request)
    return _run(command, run_config_class(values), values, given.workdir)


def define_slice_flags(values: flags.FlagValues) -> None:
    """Adds the flags of plans for a TPU slice."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    text("topology", "", "a TPU slice, as v5e:4x4; empty takes the scaling point's own")
    flags.DEFINE_bool("suggest", False, "looks for the cheapest plan", flag_values=values)
    flags.DEFINE_float("price", 0.0, "of a chip for an hour", flag_values=values)
    flags.DEFINE_integer(
        "prompt_tokens", 1000, "of the longest prompts, if no model is there", flag_values=values
    )


def _run(
    command: Callable[[Any, Path], Path], config: type, values: dict[str, Any], workdir: str
) -> int:
    """Runs a command that has a config and a workdir; the path of its results comes last."""
    from robustjax.runtime.compilation import keep_compiled_programs
    from robustjax.settings import build

    settings: Any = build(config, values, "config")
    distributed.start()
    with mirror.workdir(workdir) as folder:
        keep_compiled_programs(folder)
        result = command(settings, folder)
    if distributed.is_primary():
        print(mirror.as_given(result, workdir, folder))
    return 0


def _report(arguments: list[str]) -> int:
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "folder of the report", flag_values=values)
    flags.DEFINE_string("title", None, "heading", flag_values=values)
    flags.DEFINE_enum(
        "pretraining",
        "corrected",
        ("corrected", "released"),
        "compute of published models; released exchanges two as Howe et al. 2024 do",
        flag_values=values,
    )
    flags.DEFINE_string("published", "", "folder of published CSV files", flag_values=values)
    flags.DEFINE_bool("paper", False, "also panels as PDF of 3.5 x 2.5 inches", flag_values=values)
    workdirs = parse(values, arguments, required=("out",))
    if bool(workdirs) == bool(values.published):
        raise UserError(
            "give either the workdirs of runs or published files: robustjax report WORKDIR... "
            "--out=FOLDER, or robustjax report --published=FOLDER --out=FOLDER"
        )
    from robustjax.analysis.report import write_published_report, write_report

    with mirror.workdir(values.out) as out:
        options = (str(out), values.title, values.pretraining, values.paper)
        if workdirs:
            page = write_report([str(mirror.brought(one)) for one in workdirs], *options)
        else:
            page, notes = write_published_report(values.published, *options)
            print(*(f"report: {note}" for note in notes), sep="\n")
    print(mirror.as_given(page, values.out, out))
    return 0


def _data(arguments: list[str]) -> int:
    values = flags.FlagValues()
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    text("task", "", "a task by name, or jsonl")
    text("data_dir", "", "where data sets of owners' files are; local or gs://")
    text("manual_dir", "", "folder with the owners' files, if they cannot be downloaded")
    text("train_path", "", "file of task jsonl")
    text("validation_path", "", "file of task jsonl")
    flags.DEFINE_enum("split", "validation", ("train", "validation"), "shown", flag_values=values)
    flags.DEFINE_integer("n", 3, "how many examples are shown", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the data", flag_values=values)
    flags.DEFINE_float("position", 1.0, "of the attack", flag_values=values)
    flags.DEFINE_enum(
        "color", "auto", ("auto", "always", "never"), "paints spans", flag_values=values
    )
    verbs = tuple(_DATA_FLAGS)
    verb, *unexpected = parse(values, arguments, required=()) or [""]
    if verb not in verbs or unexpected:
        raise UserError(f"say one of {', '.join(verbs)}: robustjax data list")
    given = {name for name in values if values[name].present}
    if useless := sorted(given - _DATA_FLAGS[verb]):
        raise UserError(f"--{useless[0]} has no effect on robustjax data {verb}")
    if verb != "list" and not values.task:
        raise UserError("--task is missing; robustjax data list names the tasks")
    from robustjax.commands import data
    from robustjax.data.tasks import TaskConfig

    if verb == "list":
        print(data.list_tasks(values.data_dir))
    elif verb == "prepare":
        print(data.prepare_task(values.task, values.data_dir, values.manual_dir))
    else:
        settings: dict[str, Any] = {name: values[name].value for name in sorted(_DATA_TASK)}
        config = TaskConfig(values.task, **settings)
        coloured = data.wants_colour(values.color)
        print(data.show_examples(config, values.split, values.n, values.position, coloured))
    return 0


_DATA_TASK = {"data_dir", "manual_dir", "train_path", "validation_path", "seed"}
_DATA_FLAGS = {
    "list": {"data_dir"},
    "prepare": {"task", "data_dir", "manual_dir"},
    "show": {"task", "split", "n", "position", "color"} | _DATA_TASK,
}
"""Which flags each of the three takes."""


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
    unexpected = parse(values, arguments, required=("from", "to"))
    if unexpected:
        raise UserError(f"{unexpected[0]!r} is no flag; did you mean --from={unexpected[0]}?")
    from robustjax.models.convert import convert

    given = {name: value for name, value in values.flag_values_dict().items() if value is not None}
    print(convert(given.pop("from"), given.pop("to"), **given))
    return 0


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())


_COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "study": _study,
    "finetune": _finetune,
    "advtrain": _advtrain,
    "attack": _attack,
    "plan": _plan,
    "report": _report,
    "data": _data,
    "convert": _convert,
}

if __name__ == "__main__":
    sys.exit(main())
