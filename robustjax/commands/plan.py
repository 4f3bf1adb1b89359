"""`robustjax plan --local`: batch and chunk of an attack for the memory of this device."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

from robustjax.attacks.frame import Prompt, Shape
from robustjax.attacks.search import (
    bucket_of,
    bucket_shape,
    companion_head,
    module_of,
    prompt_of,
)
from robustjax.commands.attack import AttackInputs, AttackRunConfig, find_inputs
from robustjax.commands.companions import check_companion_is_named
from robustjax.errors import UserError
from robustjax.given_model import ModelConfig
from robustjax.models import registry
from robustjax.models.transformer import Definition, Head
from robustjax.planning import local
from robustjax.planning.local import Case, DeviceMemory, Proposal
from robustjax.runtime.files import write_json
from robustjax.runtime.mesh import AXES, make_mesh
from robustjax.runtime.runlog import check_writable
from robustjax.settings import describe

_SHORT = 8
"""Tokens of an answer prompt, and of a text to go on with, where no tokenizer tells."""


class Question(NamedTuple):
    """What is planned for.

    Attributes:
        case: models and bucket.
        num_examples: examples that there are.
        model: what the model is called.
        prompts: what is known of the prompts, for people.
    """

    case: Case
    num_examples: int
    model: str
    prompts: str


def run_plan_command(config: AttackRunConfig, workdir: str | Path) -> Path:
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
    question = _question_of_point(config) if _is_only_a_point(config) else _question(config)
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


def _is_only_a_point(config: AttackRunConfig) -> bool:
    config.model.check_named()
    return not config.model.path


def _question(config: AttackRunConfig) -> Question:
    """About models and texts that are here."""
    inputs = find_inputs(config)
    companion = inputs.companion
    case = Case(
        _with_numerics(inputs.victim.definition, config.model),
        None if companion is None else _with_numerics(companion.definition, config.companion),
        _largest_bucket(config, inputs),
    )
    fitting = len(inputs.task.split(config.split))
    prompts = f"the longest of {fitting} {config.split} examples"
    count = min(config.num_examples or fitting, fitting)
    return Question(case, count, inputs.victim.point, prompts)


def _question_of_point(config: AttackRunConfig) -> Question:
    """About a model that is known by its shape only."""
    check_companion_is_named(config.companion, [config.attack], config.model.head)
    if not config.num_examples:
        raise UserError(
            "config.num_examples=0 takes all examples, which cannot be counted without "
            "config.model.path; give a number"
        )
    attack, head, companion = config.attack, config.model.head, None
    if config.companion.is_named:
        if config.companion.path:
            raise UserError(
                "config.companion.path is set, but config.model.path is not; give both paths, or "
                "name both models by point"
            )
        companion = _definition_of_point(config.companion, companion_head(attack, head))
    victim = _definition_of_point(config.model, head)
    context = victim.config.context
    goal = _SHORT if head == "lm" else 0
    room = context - module_of(attack).slot_width(attack) - goal
    before = round(attack.position * room)
    if room < 1:
        raise UserError(f"config.attack: its slot leaves no room in a context of {context} tokens")
    shape = bucket_shape(before, max(room - before, _SHORT), goal, config.search)
    prompts = f"any that fit its context of {context}; config.model.path would tell more"
    return Question(
        Case(victim, companion, shape), config.num_examples, config.model.point, prompts
    )


def _definition_of_point(model: ModelConfig, head: Head) -> Definition:
    shape = registry.scaling_point(model.point).config
    return Definition(shape, head=head, numerics=model.numerics, **registry.layer_loop(shape))


def _with_numerics(definition: Definition, model: ModelConfig) -> Definition:
    return dataclasses.replace(definition, numerics=model.numerics)


def _largest_bucket(config: AttackRunConfig, inputs: AttackInputs) -> Shape:
    """Of the examples that are to be attacked; no part of any bucket is wider."""
    task = inputs.task
    prompts = [
        prompt_of(inputs.victim, example, task.chunk_kinds, config.attack, inputs.companion)
        for example in task.split(config.split)
    ]
    shapes = [bucket_of(one, config.search) for one in prompts if isinstance(one, Prompt)]
    if not shapes:
        raise UserError(
            f"config.task: none of its {len(prompts)} {config.split} examples can be attacked; "
            "give shorter texts or another model"
        )
    before_width, after_width, goal_width = (max(widths) for widths in zip(*shapes, strict=True))
    return before_width, after_width, goal_width


def _flags(config: AttackRunConfig, found: Proposal, devices: int) -> list[str]:
    """What to add to the attack's command line."""
    flags = [f"--config.search.batch_size={devices * found.need.rows}"]
    if found.attack != config.attack:
        flags.append(
            f"--config.attack.{local.pass_field(found.attack)}={local.pass_size(found.attack)}"
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
        local.pass_field(found.attack): local.pass_size(found.attack),
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
