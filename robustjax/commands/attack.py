"""`robustjax attack`: one attack on one victim, in a workdir of its own."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from robustjax import given_model
from robustjax.attacks.search import Attack, SearchConfig, module_of
from robustjax.commands import workdirs
from robustjax.commands.companions import check_companion_is_named, find_companion
from robustjax.data.chat import ChatConfig, templated, turn_of
from robustjax.data.prompts import Task
from robustjax.data.tasks import TaskConfig, load_task, require_classes
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.evaluation.generate import GenerationConfig
from robustjax.evaluation.judges import HTTPJudgeConfig, make_judge
from robustjax.evaluation.perplexity_filter import PerplexityFilterConfig, prepare_filter
from robustjax.evaluation.records import rate_names
from robustjax.evaluation.success_rules import (
    WRONG_ANSWER,
    JudgedAnswer,
    SuccessRule,
    WrongAnswer,
)
from robustjax.given_model import GivenModel, ModelConfig
from robustjax.models.transformer import Head
from robustjax.runtime.mesh import MeshConfig, make_mesh
from robustjax.settings import check_edges_reach, check_seed, describe
from robustjax.stage_work import Identity, attack_into, task_leaves

SCHEMA_VERSION = 1
"""Raised when the meaning of a hashed leaf changes."""

_NO_HEAD = (
    "fine-tune the model first (robustjax finetune), set config.model.head=lm to attack it as a "
    "language model, or config.model.allow_fresh_head=True if you do mean it"
)


@dataclasses.dataclass(frozen=True)
class AttackedModel(ModelConfig):
    """Which model is attacked.

    Attributes:
        head: attacks a classifier, or a language model toward an example's `proxy_gen_target`.
        allow_fresh_head: draws the classifier head that a base model lacks.
    """

    head: Head = "classifier"
    allow_fresh_head: bool = False


@dataclasses.dataclass(frozen=True)
class FilteredBy(PerplexityFilterConfig):
    """A perplexity filter that looks at the texts of the attack; none if no model is named.

    Attributes:
        model: the language model that scores texts; it may be of any family.
    """

    model: ModelConfig = ModelConfig()

    @property
    def settings(self) -> PerplexityFilterConfig:
        """How it scores."""
        fields = dataclasses.fields(PerplexityFilterConfig)
        return PerplexityFilterConfig(**{one.name: getattr(self, one.name) for one in fields})


@dataclasses.dataclass(frozen=True)
class AttackRunConfig:
    """An attack on a victim.

    Attributes:
        model: the victim.
        task: the data.
        attack: the attack.
        split: which part of the task is attacked.
        num_examples: correctly answered examples to attack; 0 attacks all.
        seed: seed of the attack.
        search: how the search is cut into programs.
        mesh: devices.
        topology: TPU slice that the run is meant for; `robustjax plan` compiles for it.
        companion: a second model, for attacks that ask one: BEAST a language model, probe sampling
            a classifier of the same task.
        perplexity_filter: a defence whose detection rates are reported.
        judge: what breaks a language model. Empty: going on with `proxy_gen_target`;
            `wrong_answer`: not going on with `gen_target`; `exact_target`, `refusal_prefix`, `http`
            or `FILE.py:function`: what a judge of that name makes of generated answers.
        generation: how answers are generated for a judge.
        http_judge: the judge `http`.
        chat: how prompts become conversations.
    """

    model: AttackedModel
    task: TaskConfig
    attack: Attack
    split: Literal["train", "validation"] = "validation"
    num_examples: int = 64
    seed: int = 0
    search: SearchConfig = SearchConfig()
    mesh: MeshConfig = MeshConfig()
    topology: str = ""
    companion: ModelConfig = ModelConfig()
    perplexity_filter: FilteredBy = FilteredBy()
    judge: str = ""
    generation: GenerationConfig = GenerationConfig()
    http_judge: HTTPJudgeConfig = HTTPJudgeConfig()
    chat: ChatConfig = ChatConfig()

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        for name in ("judge", "chat.apply_template"):
            value = self.judge if name == "judge" else self.chat.apply_template
            if value and self.model.head != "lm":
                raise UserError(
                    f"{name}={value!r} is for language models; set model.head=lm, or leave it out"
                )
        if self.num_examples < 0:
            raise UserError(f"num_examples={self.num_examples} must not be negative; 0 takes all")


def run_attack_command(config: AttackRunConfig, workdir: str | Path) -> Path:
    """Attacks a victim, or goes on with it.

    Args:
        config: what to do.
        workdir: where everything goes; the same workdir continues an interrupted attack.

    Returns:
        The workdir.

    Raises:
        UserError: bad settings, data, model or workdir.
    """
    folder = Path(workdir)
    mesh = make_mesh(config.mesh)
    given, companion, scorer, task, train_texts = find_inputs(config)
    rule = find_rule(config, given, task, folder)
    seed, past = given_model.read_past(given)
    identity = Identity(given.point, given.family, task.name, seed)
    leaves = {
        "task": task_leaves(config.task, task),
        "model": given.leaves(config.model.numerics) | {"seed": seed} | dataclasses.asdict(past),
        "attack": describe(config.attack),
        "split": config.split,
        "num_examples": config.num_examples,
        "seed": config.seed,
        "search": describe(config.search),
    }
    if rule is not None:
        leaves["judge"] = rule.leaves()
    if companion is not None:
        leaves["companion"] = companion.leaves(config.companion.numerics)
    if scorer is not None:
        filtered = config.perplexity_filter
        model = scorer.leaves(filtered.model.numerics)
        leaves["perplexity_filter"] = describe(filtered.settings) | {"model": model}
    stage = workdirs.claim(
        "attack",
        folder,
        leaves,
        SCHEMA_VERSION,
        config=config,
        seeds={"attack": config.seed, "training": seed},
        task=task,
    )
    if stage is None:
        return folder
    workdirs.note_instruction("attack", given, config.task)
    perplexity_filter = None
    if scorer is not None:
        reader = scorer.load(filtered.model.numerics, mesh)
        perplexity_filter = prepare_filter(reader, train_texts, filtered.settings)
    summary = attack_into(
        folder,
        given.load(config.model.numerics, mesh),
        identity,
        past,
        task.split(config.split),
        task.chunk_kinds,
        config.attack.name,
        config.attack,
        seed=config.seed,
        search=config.search,
        num_examples=config.num_examples,
        label=f"attack {given.point} {config.attack.name}",
        companion=None if companion is None else companion.load(config.companion.numerics, mesh),
        perplexity_filter=perplexity_filter,
        rule=rule,
    )
    stage.finish()
    workdirs.say("attack", _result(summary))
    return folder


class AttackInputs(NamedTuple):
    """What an attack works on, found and checked but not loaded.

    Attributes:
        victim: the model under attack.
        companion: the model that the attack asks as well, or None.
        scorer: the language model of the perplexity filter, or None.
        task: of which one split is left, with the examples that fit into the contexts.
        train_texts: clean texts that the filter is prepared on.
    """

    victim: GivenModel
    companion: GivenModel | None
    scorer: GivenModel | None
    task: Task
    train_texts: list[str]


def find_inputs(config: AttackRunConfig) -> AttackInputs:
    """Finds models and data, and checks that they go together.

    Raises:
        UserError: one of them is missing or does not fit the others.
    """
    config.model.check_named()
    check_companion_is_named(config.companion, [config.attack], config.model.head)
    if config.model.head == "classifier":
        require_classes(config.task)
    whole_task = load_task(config.task)
    model = config.model
    remedy = "" if model.allow_fresh_head else _NO_HEAD
    given = given_model.find(model, model.head, whole_task.num_classes, remedy)
    check_edges_reach({"config.search": config.search.edges}, given.definition.config.context)
    attacks = [config.attack]
    companion = find_companion(config.companion, attacks, given, whole_task.num_classes)
    whole_task = templated(whole_task, given.tokenizer, config.chat, [config.attack.position])
    context = given.definition.config.context
    if companion is not None:
        context = min(context, companion.definition.config.context)
    scorer = None
    if config.perplexity_filter.model.is_named:
        field = "config.perplexity_filter.model"
        classes = whole_task.num_classes
        scorer = given_model.find(config.perplexity_filter.model, "lm", classes, field=field)
        context = min(context, scorer.definition.config.context)
        if not whole_task.train:
            raise UserError(
                "config.perplexity_filter takes its threshold from training texts, and the task "
                "has none; set config.task.num_train or config.task.train_path"
            )
    task = _only_what_fits(config, whole_task, given, context)
    return AttackInputs(given, companion, scorer, task, [one.text for one in whole_task.train])


def _only_what_fits(config: AttackRunConfig, task: Task, given: GivenModel, context: int) -> Task:
    """The split to be attacked, without the examples that the context has no room for."""
    examples = task.split(config.split)
    if config.num_examples > len(examples):
        raise UserError(
            f"config.num_examples={config.num_examples} is more than the {len(examples)} "
            f"{config.split} examples; lower it (0 takes all), or raise config.task.num_"
            f"{config.split}"
        )
    if config.split == "validation":
        task = dataclasses.replace(task, train=())
    else:
        task = dataclasses.replace(task, validation=())
    room = context - module_of(config.attack).slot_width(config.attack)
    if config.model.head == "lm":
        said = _longest_goal(config, task, given.tokenizer)
        room -= max(said, config.generation.max_new_tokens) if _generates(config) else said
    positions = [config.attack.position]
    policy = config.task.too_long
    return workdirs.only_what_fits("attack", task, given.tokenizer, room, policy, positions)


def find_rule(
    config: AttackRunConfig, given: GivenModel, task: Task, folder: Path
) -> SuccessRule | None:
    """What breaks the victim, checked before anything is computed; None leaves it to the search.

    Args:
        config: what to do.
        given: the victim.
        task: the data.
        folder: the workdir.

    Raises:
        UserError: there is no such judge, or it does not go with the task.
    """
    if not config.judge:
        return None
    if not _generates(config):
        if not task.class_names:
            raise UserError(
                f"config.judge={config.judge!r}: task {task.name!r} has no right answers; take "
                "another judge"
            )
        return WrongAnswer(task.chunk_kinds)
    try:
        judge = make_judge(config.judge, config.http_judge, folder)
    except UserError as error:
        raise UserError(f"config.{error}") from error
    turn = turn_of(given.tokenizer, config.chat)
    return JudgedAnswer(judge, config.generation, config.seed, turn)


def _generates(config: AttackRunConfig) -> bool:
    return config.judge not in ("", WRONG_ANSWER)


def _longest_goal(config: AttackRunConfig, task: Task, tokenizer: Tokenizer) -> int:
    examples = task.split(config.split)
    goals = {example.proxy_gen_target for example in examples}
    if config.judge == WRONG_ANSWER:
        goals |= {example.gen_target for example in examples}
    return max(len(ids) for ids in tokenizer.encode_inside(sorted(goals)))


def _result(summary: dict[str, Any]) -> str:
    attacked, broken = summary["num_attacked"], summary["num_broken"]
    right = f"{summary['num_correct_before']} of {summary['num_examples']} examples answered right"
    if not attacked:
        return f"{right}; none attacked"
    names = rate_names(summary["variant"])
    low, high = (f"{100 * bound:.0f}" for bound in summary[names.interval])
    rate = f"{100 * summary[names.rate]:.0f} % ({low} to {high})"
    result = f"{right}; {broken} of {attacked} attacked ones broken: {rate}"
    if judge := summary.get("judge"):
        low, high = (f"{100 * bound:.0f}" for bound in summary["judged_success_interval"])
        rate = f"{100 * summary['judged_success_rate']:.0f} % ({low} to {high})"
        result += f"; {judge} says {summary['num_judged_success']} of {attacked}: {rate}"
        if unread := summary["num_unparsable"]:
            result += f", and of {unread} nothing that can be read"
    if detected := summary.get("perplexity_filter"):
        hits, alarms = (
            100 * detected[name] for name in ("true_positive_rate", "false_positive_rate")
        )
        result += f"; the filter flags {hits:.0f} % of them, and {alarms:.0f} % of clean texts"
    return result
