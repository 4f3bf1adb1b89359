"""`robustjax plan --suggest`: mesh, batch and pass of an attack that are cheapest on a slice."""

import dataclasses
import functools
import sys
from pathlib import Path

from robustjax.commands.attack import AttackRunConfig
from robustjax.commands.plan_question import question_of
from robustjax.commands.plan_slice import RunConfig, SliceRequest, report, slice_of
from robustjax.errors import UserError
from robustjax.planning import ahead_of_time, local
from robustjax.planning.run_plan import RunPlan, plan_run
from robustjax.planning.suggest import Suggestion, Trial, suggest
from robustjax.planning.work import Layout, Work, bytes_a_device, search_work
from robustjax.runtime.files import write_json
from robustjax.runtime.mesh import AXES
from robustjax.runtime.runlog import check_writable


def run_suggest(config: RunConfig, workdir: str | Path, request: SliceRequest) -> Path:
    """Finds the cheapest way to run an attack on a slice, and leaves it in ``plan.json``.

    Args:
        config: the attack; ``topology`` is its slice. Its mesh, batch and pass are not looked at.
        workdir: where ``plan.json`` goes.
        request: the rest.

    Returns:
        Its path.

    Raises:
        UserError: no attack, bad settings, data, model or workdir; libtpu is missing; nothing fits.
    """
    if not isinstance(config, AttackRunConfig):
        raise UserError("--suggest plans attacks; give it the config of one (configs/attack.py)")
    folder, chosen = Path(workdir), slice_of(config)
    ahead_of_time.check_compiler()
    check_writable(folder)
    question = question_of(config, request.prompt_tokens)
    case = question.case

    @functools.cache
    def works(trial: Trial) -> list[Work]:
        layout = Layout(ahead_of_time.mesh_of(trial.mesh, chosen))
        one = dataclasses.replace(trial.attack, num_iterations=1)
        found = search_work(one, case.victim, case.companion, case.shape, trial.batch_size, layout)
        return [work for work in found if not work.is_once]

    def least_bytes(trial: Trial) -> int:
        return max(bytes_a_device(work.program.arguments) for work in works(trial))

    def compile_trial(trial: Trial) -> RunPlan:
        print(f"plan: compiling {' '.join(flags_of(trial))}", file=sys.stderr)
        mesh = ahead_of_time.mesh_of(trial.mesh, chosen)
        return plan_run(works(trial), mesh, chosen)

    found = suggest(
        config.attack,
        case.victim.config,
        chosen,
        question.num_examples,
        least_bytes,
        compile_trial,
    )
    path = folder / "plan.json"
    saved = {"model": question.model} | found.plan.to_json(request.price or None)
    flags = flags_of(found.trial)
    suggested = {
        "flags": flags,
        "chip_seconds_an_example_iteration": found.chip_seconds,
        "compiled": found.compiled,
        "left_out": found.left_out,
    }
    write_json(path, saved | {"suggested": suggested})
    print("\n".join(report(saved)[:-1]))
    print(_summary(found))
    print(" ".join(flags))
    return path


def flags_of(trial: Trial) -> list[str]:
    """What to add to the attack's command line."""
    sizes = zip(AXES, trial.mesh.sizes, strict=True)
    return [
        *(f"--config.mesh.{axis}={size}" for axis, size in sizes),
        f"--config.search.batch_size={trial.batch_size}",
        f"--config.attack.{local.pass_field(trial.attack)}={local.pass_size(trial.attack)}",
    ]


def _summary(found: Suggestion) -> str:
    return (
        f"cheapest at least {found.chip_seconds:.4g} chip-seconds an iteration and example; "
        f"{found.compiled} plans compiled, {found.left_out} left out as too large"
    )
