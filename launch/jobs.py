"""The jobs of a sweep, from the `sweep()` of a config: names, workdirs, commands.

`sweep()` yields what may stand behind the config's name, as `point=pythia-14m,task=imdb,seed=0`;
each is a job in a workdir of its own.
"""

import dataclasses
import importlib.util
import re
import string
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from launch.job_work import JobWork, work_of

COMMANDS = ("study", "finetune", "advtrain", "attack")


@dataclasses.dataclass(frozen=True)
class Job:
    """One command in a workdir of its own.

    Attributes:
        name: of small letters, digits and `-`, as the cloud wants names.
        axes: what it is: the arguments of its config.
        workdir: local or `gs://`.
        command: what stands behind `robustjax`.
        work: what it has to do, as far as its config tells.
    """

    name: str
    axes: dict[str, str]
    workdir: str
    command: tuple[str, ...]
    work: JobWork | None = None


def jobs_of(
    config: str,
    workdir: str,
    command: str = "",
    flags: Sequence[str] = (),
    only: str = "",
    *,
    with_work: bool = False,
) -> list[Job]:
    """The jobs of a config's sweep.

    Args:
        config: its file.
        workdir: with the names of axes, or `name`, in braces; `/{name}` is added where there are
            none.
        command: of robustjax; by default what the file is named after.
        flags: for every job.
        only: axes as `point=pythia-14m+pythia-31m,task=imdb`; jobs with others are left out.
        with_work: counts what each has to do, for which its config is built.

    Raises:
        SystemExit: the config has no sweep, nothing is left, or two jobs have one name or workdir.
    """
    command = command or Path(config).stem
    if command not in COMMANDS:
        raise SystemExit(f"sweep: --command={command}: one of {', '.join(COMMANDS)}")
    wanted = {name: values.split("+") for name, values in _axes(only).items()}
    found = []
    module = _load(config)
    arguments = list(module.sweep())
    if not arguments:
        raise SystemExit(f"sweep: the sweep() of {config} is empty")
    same = set.intersection(*(set(_axes(argument).items()) for argument in arguments))
    for argument in arguments:
        axes = _axes(argument)
        if unknown := sorted(wanted.keys() - axes.keys()):
            raise SystemExit(f"sweep: --only={only}: the sweep has no {unknown[0]}")
        if all(axes[name] in values for name, values in wanted.items()):
            name = job_name({axis: axes[axis] for axis in axes if (axis, axes[axis]) not in same})
            place = _place(workdir, axes | {"name": name})
            words = (f"--config={config}:{argument}", *flags, f"--workdir={place}")
            work = work_of(command, module.get_config(argument).to_dict()) if with_work else None
            found.append(Job(name, axes, place, (command, *words), work))
    if not found:
        raise SystemExit(f"sweep: no job of {config} is left")
    _check_apart(found)
    return found


def job_name(axes: dict[str, str]) -> str:
    """The values of axes, such as `pythia-1-4b-imdb-gcg-seed0`; numbers with the axis' name."""
    parts = [name + value if value.isdecimal() else value for name, value in axes.items()]
    name = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    return name if name[:1].isalpha() else f"job-{name}"


def _axes(argument: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in argument.split(",") if item)
    return {name: value or "True" for name, _, value in pairs}


def _load(config: str) -> Any:
    path = Path(config)
    if not path.is_file():
        raise SystemExit(f"sweep: --config={config}: no such file")
    # Configs import one another as configs.NAME, from whatever folder the command is run in.
    sys.path.insert(0, str(path.resolve().parent.parent))
    spec = importlib.util.spec_from_file_location("swept_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "sweep"):
        raise SystemExit(f"sweep: {config} has no sweep()")
    return module


def _place(workdir: str, values: dict[str, str]) -> str:
    used = [name for _, name, _, _ in string.Formatter().parse(workdir) if name is not None]
    if unknown := sorted(set(used) - values.keys()):
        raise SystemExit(f"sweep: --workdir={workdir}: the sweep has no {unknown[0]!r}")
    return (workdir if used else workdir.rstrip("/") + "/{name}").format_map(values)


def _check_apart(jobs: list[Job]) -> None:
    """No two jobs may write to one folder, nor one below another's."""
    names: dict[str, Job] = {}
    places: dict[PurePosixPath, Job] = {}
    for job in jobs:
        if (other := names.setdefault(job.name, job)) is not job:
            raise SystemExit(f"sweep: {job.axes} and {other.axes} are both called {job.name}")
        place = PurePosixPath(job.workdir)
        if (other := places.setdefault(place, job)) is not job:
            raise SystemExit(
                f"sweep: {job.name} and {other.name} have one workdir, {job.workdir}: "
                "put {name} into --workdir"
            )
    for place, job in places.items():
        for above in place.parents:
            if above in places:
                raise SystemExit(
                    f"sweep: the workdir of {job.name}, {place}, is inside of that of "
                    f"{places[above].name}"
                )
