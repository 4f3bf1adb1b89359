"""`robustjax plan --topology`: a run on a TPU slice, compiled without one."""

import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustjax.attacks.search import Attack, SearchConfig
from robustjax.commands.advtrain import AdvtrainRunConfig
from robustjax.commands.attack import AttackedModel, AttackRunConfig
from robustjax.commands.finetune import FinetuneRunConfig
from robustjax.commands.plan_question import Question, definition_of_point, question_of
from robustjax.data.batching import bucket_for
from robustjax.errors import UserError
from robustjax.models.transformer import Definition
from robustjax.models.victim import BUCKET_EDGES, Victim
from robustjax.planning import ahead_of_time, run_plan
from robustjax.planning.chips import Slice, parse_slice
from robustjax.planning.run_plan import RunPlan
from robustjax.planning.work import (
    Layout,
    Work,
    answer_work,
    num_steps,
    search_work,
    training_work,
)
from robustjax.runtime.files import write_json
from robustjax.runtime.runlog import check_writable
from robustjax.training.loop import TrainConfig

RunConfig = AttackRunConfig | AdvtrainRunConfig | FinetuneRunConfig

PROMPT_TOKENS = 1000
"""Of the longest prompts, where only a scaling point is named: the tasks of Howe et al. 2024 (arXiv
2407.18213) keep texts of at most 1000 tokens of GPT-2's, and every model has about as many."""


def run_config_class(values: Mapping[str, Any]) -> type:
    """What kind of run a config describes: adversarial training, clean training, or an attack."""
    if "advtrain" in values:
        return AdvtrainRunConfig
    return FinetuneRunConfig if "finetune" in values else AttackRunConfig


@dataclasses.dataclass(frozen=True)
class SliceRequest:
    """What is asked of a plan.

    Attributes:
        price: of a chip for an hour, in any currency; 0 if it is not known.
        prompt_tokens: of the longest prompts, where only a scaling point is named.
    """

    price: float = 0.0
    prompt_tokens: int = PROMPT_TOKENS

    def __post_init__(self) -> None:
        if not 0 <= self.price < math.inf:
            raise UserError(f"--price={self.price} must be a number of at least 0")
        if self.prompt_tokens < 1:
            raise UserError(f"--prompt_tokens={self.prompt_tokens} must be at least 1")


def run_slice_plan(config: RunConfig, workdir: str | Path, request: SliceRequest) -> Path:
    """Compiles the programs of a run for a TPU slice, and leaves what they take in ``plan.json``.

    No TPU is needed, no weight is loaded and, where only a scaling point is named, none is
    downloaded.

    Args:
        config: the run; ``topology`` is its slice.
        workdir: where ``plan.json`` goes.
        request: the rest.

    Returns:
        Its path.

    Raises:
        UserError: bad settings, data, model or workdir; libtpu is missing; it does not fit.
    """
    folder = Path(workdir)
    chosen = slice_of(config)
    ahead_of_time.check_compiler()
    check_writable(folder)
    plan = plan_on(config, chosen, request.prompt_tokens, _say)
    path = folder / "plan.json"
    saved = {"model": _model_name(config)} | plan.to_json(request.price or None)
    write_json(path, saved)
    print("\n".join(report(saved)))
    if not plan.fits:
        print(
            f"plan: {chosen.name} is too small: less than a tenth of its memory stays free; take "
            "more chips, split weights further (config.mesh), or lower batch and chunk",
            file=sys.stderr,
        )
    return path


def slice_of(config: RunConfig) -> Slice:
    """The slice that a run is meant for."""
    if not config.topology:
        raise UserError(
            f"config.topology is empty: {_model_name(config)} has no default slice; give "
            "--topology=v5e:4x4, or --local to plan for the device that is here"
        )
    return parse_slice(config.topology)


def plan_on(
    config: RunConfig,
    chosen: Slice,
    prompt_tokens: int = PROMPT_TOKENS,
    tick: Callable[[str], None] = lambda name: None,
    left_out: Collection[str] = (),
) -> RunPlan:
    """Compiles the programs of a run for a slice, but for those that are left out."""
    mesh = ahead_of_time.mesh_of(config.mesh, chosen)
    works = works_of(config, Layout(mesh), prompt_tokens)
    return run_plan.plan_run((one for one in works if one.name not in left_out), mesh, chosen, tick)


def works_of(config: RunConfig, layout: Layout, prompt_tokens: int) -> Iterator[Work]:
    """The programs of a run, laid out."""
    if isinstance(config, AttackRunConfig):
        question = question_of(config, prompt_tokens)
        searches = [config.attack] * _batches(question.num_examples, config.search)
        yield from _search(question, config.attack, searches, config.search, layout)
        case = question.case
        if case.victim.head == "classifier":
            yield _answers(case.victim, sum(case.shape), question.num_examples, layout)
    elif isinstance(config, AdvtrainRunConfig):
        yield from _hardening(config, layout, prompt_tokens)
    else:
        yield from _finetuning(config, layout, prompt_tokens)


def _search(
    question: Question,
    attack: Attack,
    searches: Sequence[Attack],
    config: SearchConfig,
    layout: Layout,
    beside: int = 0,
) -> Iterator[Work]:
    """The programs of searches that differ in their iterations only, one a batch."""
    case = question.case
    one = dataclasses.replace(attack, num_iterations=1)
    steps = sum(map(num_steps, searches))
    for work in search_work(
        one, case.victim, case.companion, case.shape, config.batch_size, layout
    ):
        runs = len(searches) if work.is_once else steps
        yield work._replace(runs=runs, beside=beside)


def _answers(
    definition: Definition, tokens: int, count: int, layout: Layout, beside: int = 0
) -> Work:
    """Asking a classifier about so many whole texts of so many tokens."""
    rows = Victim.batch_size
    width = bucket_for(min(tokens, definition.config.context), BUCKET_EDGES)
    work = answer_work(definition, rows, width, layout)
    return work._replace(runs=-(-count // rows), beside=beside)


class _Searches(NamedTuple):
    """Searches of adversarial training that differ in their iterations only.

    Attributes:
        name: for people.
        config: how they are cut into programs.
        examples: attacked in each.
        attacks: one for each time that all examples are attacked.
    """

    name: str
    config: SearchConfig
    examples: int
    attacks: list[Attack]


def _hardening(config: AdvtrainRunConfig, layout: Layout, prompt_tokens: int) -> Iterator[Work]:
    """Adversarial training; the weights that it started from stay beside those that it changes."""
    advtrain, definition = config.advtrain, _trained(config)
    width = _train_width(definition, advtrain.train, prompt_tokens, advtrain.slot_width)
    training, kept = training_work(definition, advtrain.train, width, layout, advtrain.embedding)
    steps = math.ceil(advtrain.pool.max_examples / advtrain.train.batch_size)
    yield training._replace(runs=advtrain.num_rounds * advtrain.train.epochs * steps)
    # Searches with the same programs are one.
    found: dict[Any, tuple[str, Question, SearchConfig, list[Attack]]] = {}
    for one in _searches_of(config):
        asked = _as_attack(config, one.attacks[0], one.config, one.examples)
        question = question_of(asked, prompt_tokens)
        attack = dataclasses.replace(one.attacks[0], num_iterations=1)
        key = attack, question.case, one.config.batch_size
        _, _, _, every = found.setdefault(key, (one.name, question, one.config, []))
        every += one.attacks * _batches(question.num_examples, one.config)
    for (attack, _, _), (name, question, search, every) in found.items():
        for work in _search(question, attack, every, search, layout, kept):
            yield work._replace(name=f"{name} {work.name}")
    answers = config.task.num_validation * (1 + advtrain.num_rounds)
    yield _answers(definition, width, answers, layout, kept)


def _searches_of(config: AdvtrainRunConfig) -> Iterator[_Searches]:
    """The training attacks of all rounds, and what is attacked on the way."""
    advtrain, evaluation = config.advtrain, config.evaluation
    rounds = range(1, advtrain.num_rounds + 1)
    for name, one in advtrain.attacks.items():
        attacks = [one.of_round(number, advtrain.num_rounds) for number in rounds]
        yield _Searches(name, advtrain.search, advtrain.shares[name], attacks)
    last = advtrain.num_rounds
    measured = 1 + sum(number % evaluation.every == 0 or number == last for number in rounds)
    for name, attack in evaluation.attacks.items():
        examples = evaluation.num_examples
        yield _Searches(f"held-out {name}", evaluation.search, examples, [attack] * measured)


def _finetuning(config: FinetuneRunConfig, layout: Layout, prompt_tokens: int) -> Iterator[Work]:
    definition = _trained(config)
    train = config.finetune.train
    width = _train_width(definition, train, prompt_tokens, 0)
    training, kept = training_work(definition, train, width, layout)
    examples = config.finetune.num_train or config.task.num_train
    yield training._replace(runs=train.epochs * math.ceil(examples / train.batch_size))
    if config.head == "classifier":
        answers = train.epochs * config.task.num_validation
        yield _answers(definition, width, answers, layout, kept)


def _trained(config: AdvtrainRunConfig | FinetuneRunConfig) -> Definition:
    if config.model.path and not config.model.point:
        raise UserError(
            "config.model.point is empty; name the scaling point of the model, for a training is "
            "planned by its shape"
        )
    config.model.check_named()
    head = config.head if isinstance(config, FinetuneRunConfig) else "classifier"
    return definition_of_point(config.model, head, config.model.remat)


def _train_width(definition: Definition, train: TrainConfig, tokens: int, slot: int) -> int:
    return bucket_for(min(tokens + slot, definition.config.context), train.edges)


def _as_attack(
    config: AdvtrainRunConfig, attack: Attack, search: SearchConfig, count: int
) -> AttackRunConfig:
    """An attack of a training, as if it were run by itself."""
    model = AttackedModel(config.model.point, config.model.path, config.model.numerics)
    return AttackRunConfig(
        model,
        config.task,
        attack,
        "train",
        num_examples=count or config.task.num_validation,
        search=search,
        mesh=config.mesh,
        companion=config.companion,
    )


def _batches(examples: int, config: SearchConfig) -> int:
    return math.ceil(examples / config.batch_size)


def _model_name(config: RunConfig) -> str:
    return config.model.point or config.model.path or "the model"


def report(plan: dict[str, Any]) -> list[str]:
    """A plan for people, from what stands in `plan.json`."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    free = 1 - plan["peak"] / plan["hbm"]
    lines = [
        f"model    {plan['model']}",
        f"slice    {plan['topology']}: {plan['chips']} chips; mesh {mesh}",
        "",
        *run_plan.table(plan),
        "",
    ]
    if exchanged := run_plan.collectives(plan):
        lines += ["sent by a device in one run:", *(f"  {line}" for line in exchanged), ""]
    lines.append(
        f"memory   {plan['peak'] / 2**30:.2f} of {plan['hbm'] / 2**30:.0f} GiB a device at the "
        f"peak, {100 * free:.0f} % free"
    )
    cost = "" if plan["cost"] is None else f", {plan['cost']:,.2f} at the price given"
    lines.append(
        f"run      at least {plan['chip_hours']:,.2f} chip-hours{cost}; compilation and the host's "
        "work left out"
    )
    return lines


def _say(name: str) -> None:
    print(f"plan: compiling {name}", file=sys.stderr)
