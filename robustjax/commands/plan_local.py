"""`robustjax plan --local`: batch and chunk of an attack for the memory of this device."""

import sys
from pathlib import Path
from typing import Any

from robustjax.commands.attack import AttackRunConfig
from robustjax.commands.plan_question import Question, question_of
from robustjax.errors import UserError
from robustjax.planning import local
from robustjax.planning.local import DeviceMemory, Proposal
from robustjax.runtime.files import write_json
from robustjax.runtime.mesh import AXES, make_mesh
from robustjax.runtime.runlog import check_writable
from robustjax.settings import describe


def run_local_plan(config: AttackRunConfig, workdir: str | Path) -> Path:
    """Says what batch of an attack this device has room for, and leaves it in ``plan.json``.

    The model's weights are not loaded. Where only a scaling point is named its published weights
    are not downloaded either: prompts are then taken to fill its context.

    Args:
        config: the attack.
        workdir: where ``plan.json`` goes.

    Returns:
        Its path.

    Raises:
        UserError: bad settings, data, model or workdir, or no batch fits.
    """
    folder = Path(workdir)
    devices = _data_devices(config)
    question = question_of(config)
    memory = local.device_memory()
    check_writable(folder)
    found = local.propose(
        config.attack, question.case, memory.budget, -(-question.num_examples // devices), _say
    )
    flags = _flags(config, found, devices)
    path = folder / "plan.json"
    write_json(path, _as_json(config, question, memory, found, devices, flags))
    print("\n".join(_table(question, memory, found, devices)))
    print(" ".join(flags))
    return path


def _data_devices(config: AttackRunConfig) -> int:
    """Devices that examples are split over."""
    sizes = dict(zip(AXES, make_mesh(config.mesh).devices.shape, strict=True))
    if sizes["fsdp"] * sizes["tensor"] > 1:
        raise UserError(
            f"config.mesh: fsdp={sizes['fsdp']} and tensor={sizes['tensor']} split weights, which "
            "plan --local does not count; plan with both at 1"
        )
    return sizes["data"]


def _flags(config: AttackRunConfig, found: Proposal, devices: int) -> list[str]:
    """What to add to the attack's command line."""
    flags = [f"--config.search.batch_size={devices * found.need.rows}"]
    if found.attack != config.attack:
        flags.append(
            f"--config.attack.{local.pass_field(found.attack)}={local.pass_setting(found.attack)}"
        )
    return flags


def _as_json(
    config: AttackRunConfig,
    question: Question,
    memory: DeviceMemory,
    found: Proposal,
    devices: int,
    flags: list[str],
) -> dict[str, Any]:
    before, after, goal = question.case.shape
    return {
        "model": question.model,
        "attack": describe(config.attack),
        "device": {**memory._asdict(), "count": devices},
        "bucket": {"before": before, "after": after, "goal": goal},
        "batch_size": devices * found.need.rows,
        local.pass_field(found.attack): local.pass_setting(found.attack),
        "bytes": {
            "peak": found.need.peak,
            "kept": found.need.kept,
            "one_more_example": found.each,
            "programs": {name: one._asdict() for name, one in found.need.programs.items()},
        },
        "flags": flags,
    }


def _table(question: Question, memory: DeviceMemory, found: Proposal, devices: int) -> list[str]:
    need = found.need
    before, after, goal = question.case.shape
    text = f", {goal} of the text to go on with" if goal else ""
    return [
        f"model    {question.model}",
        f"prompts  {question.prompts}: up to {before} tokens before the slot, {after} after{text}",
        f"device   {memory.device}: {_gb(memory.free)} free, {_gb(memory.budget)} to be used",
        "",
        f"{'program':<24}{'arguments':>12}{'working':>12}{'results':>12}",
        *(
            f"{name:<24}{_gb(one.arguments):>12}{_gb(one.working):>12}{_gb(one.results):>12}"
            for name, one in need.programs.items()
        ),
        "",
        f"{_count(devices * need.rows)} at once"
        + (f", {need.rows} on each of {devices} devices" if devices > 1 else "")
        + f": {_gb(need.peak)} at the peak, {_gb(need.kept)} of it all the time"
        + (f"; one more takes {_gb(found.each)}" if found.each else ""),
    ]


def _count(examples: int) -> str:
    return f"{examples} example{'s' if examples > 1 else ''}"


def _gb(count: int) -> str:
    return f"{count / 1e9:.3f} GB"


def _say(what: str) -> None:
    print(f"plan: compiling for {what}", file=sys.stderr)
