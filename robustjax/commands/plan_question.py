"""What a plan is about: the models of an attack, its longest prompts, how many there are."""

import dataclasses
from typing import NamedTuple

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
from robustjax.models.transformer import Definition, Head, Remat
from robustjax.planning.local import Case

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


def question_of(config: AttackRunConfig, most_tokens: int | None = None) -> Question:
    """About models and texts that are here, or else about a scaling point.

    Args:
        config: the attack.
        most_tokens: of a prompt, where only a scaling point is named; None fills its context.

    Raises:
        UserError: bad settings, data or model.
    """
    config.model.check_named()
    return _of_folder(config) if config.model.path else _of_point(config, most_tokens)


def _of_folder(config: AttackRunConfig) -> Question:
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


def _of_point(config: AttackRunConfig, most_tokens: int | None) -> Question:
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
        companion = definition_of_point(config.companion, companion_head(attack, head))
    victim = definition_of_point(config.model, head)
    context = victim.config.context
    if most_tokens is not None:
        context = min(context, most_tokens)
    goal = _SHORT if head == "lm" else 0
    room = context - module_of(attack).slot_width(attack) - goal
    before = round(attack.position * room)
    if room < 1:
        raise UserError(f"config.attack: its slot leaves no room in a context of {context} tokens")
    shape = bucket_shape(before, max(room - before, _SHORT), goal, config.search)
    room_for = f"its context of {context}" if most_tokens is None else f"{context} tokens"
    prompts = f"any that fit {room_for}; config.model.path would tell more"
    return Question(
        Case(victim, companion, shape), config.num_examples, config.model.point, prompts
    )


def definition_of_point(model: ModelConfig, head: Head, remat: Remat | None = None) -> Definition:
    """The model of a scaling point, whose weights need not be here."""
    shape = registry.scaling_point(model.point).config
    return Definition(
        shape, head=head, numerics=model.numerics, **registry.layer_loop(shape, remat)
    )


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
