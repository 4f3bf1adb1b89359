"""`robustjax advtrain`: adversarial training of one model, in a workdir of its own."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from robustjax import given_model
from robustjax.attacks.search import Attack, SearchConfig, module_of
from robustjax.commands import workdirs
from robustjax.commands.companions import check_companion_is_named, find_companion
from robustjax.commands.finetune import TrainedModel
from robustjax.data.prompts import Task
from robustjax.data.tasks import TaskConfig, load_task, require_classes
from robustjax.errors import UserError
from robustjax.evaluation.records import UNDEFENDED, rate_names
from robustjax.given_model import GivenModel, ModelConfig
from robustjax.models import registry
from robustjax.models.victim import Victim
from robustjax.runtime import distributed
from robustjax.runtime.mesh import MeshConfig, make_mesh
from robustjax.runtime.runlog import config_hash, read_json
from robustjax.runtime.stages import Stage
from robustjax.settings import check_edges_reach, check_names, check_seed, describe
from robustjax.stage_work import Identity, Past, attack_into, task_leaves, without, write_summary
from robustjax.training.adversarial import AdversarialConfig, train_adversarially
from robustjax.training.loop import OUTSIDE_RESULTS

SCHEMA_VERSION = 1
"""Raised when the meaning of a hashed leaf changes."""

_NO_HEAD = "fine-tune the model first (robustjax finetune)"


@dataclasses.dataclass(frozen=True)
class HeldOutConfig:
    """Attacks on validation examples, before the first round and after rounds.

    Attributes:
        attacks: by name; none measures clean accuracy only.
        num_examples: correctly answered examples to attack; 0 attacks all.
        every: rounds from one measurement to the next; the last round is always measured.
        seed: seed of the attacks.
        search: how they are cut into programs.
    """

    attacks: dict[str, Attack] = dataclasses.field(default_factory=dict)
    num_examples: int = 64
    every: int = 1
    seed: int = 0
    search: SearchConfig = SearchConfig()

    def __post_init__(self) -> None:
        check_names("attacks", self.attacks)
        if self.num_examples < 0:
            raise UserError(f"num_examples={self.num_examples} must not be negative; 0 takes all")
        if self.every < 1:
            raise UserError(f"every={self.every} must be at least 1")
        check_seed("seed", self.seed)


@dataclasses.dataclass(frozen=True)
class AdvtrainRunConfig:
    """Adversarial training of a model.

    Attributes:
        model: a trained classifier to start from.
        task: the data.
        advtrain: the training.
        evaluation: what is measured on the way.
        seed: keys the choice of examples, the training attacks and the order of batches.
        mesh: devices.
        topology: TPU slice that the run is meant for; `robustjax plan` compiles for it.
        companion: a second model, for attacks that ask one: BEAST a language model, probe sampling
            a classifier of the same task.
    """

    model: TrainedModel
    task: TaskConfig
    advtrain: AdversarialConfig
    evaluation: HeldOutConfig = HeldOutConfig()
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    topology: str = ""
    companion: ModelConfig = ModelConfig()

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        check_names("advtrain.attacks", self.advtrain.attacks)

    @property
    def attacks(self) -> list[Attack]:
        """All attacks of the run: those trained against, and those of the evaluation."""
        training = [one.attack for one in self.advtrain.attacks.values()]
        return [*training, *self.evaluation.attacks.values()]


def run_advtrain_command(config: AdvtrainRunConfig, workdir: str | Path) -> Path:
    """Hardens a model, or goes on with it.

    Args:
        config: what to do.
        workdir: where everything goes; the same workdir continues an interrupted training.

    Returns:
        The workdir.

    Raises:
        UserError: bad settings, data, model or workdir; a loss that is not finite.
        PreemptedError: the process was asked to end; what it did is saved.
    """
    folder = Path(workdir)
    mesh = make_mesh(config.mesh)
    given, companion, past, identity, task = _find_inputs(config)
    leaves = {
        "task": task_leaves(config.task, task),
        "model": given.leaves(config.model.numerics)
        | {"remat": registry.layer_loop(given.definition.config, config.model.remat)["remat"]}
        | dataclasses.asdict(past),
        "seed": config.seed,
        "advtrain": without(config.advtrain, *OUTSIDE_RESULTS),
        "evaluation": describe(config.evaluation),
    }
    if companion is not None:
        leaves["companion"] = companion.leaves(config.companion.numerics)
    stage = workdirs.claim(
        "advtrain",
        folder,
        leaves,
        SCHEMA_VERSION,
        config=config,
        seeds={"training": config.seed, "evaluation": config.evaluation.seed},
        task=task,
    )
    if stage is None:
        return folder
    workdirs.note_instruction("advtrain", given, config.task)
    second = None if companion is None else companion.load(config.companion.numerics, mesh)
    held_out = _HeldOut(config, folder, stage, identity, past, task, second)
    _, summary = train_adversarially(
        given.load(config.model.numerics, mesh, remat=config.model.remat, seed=config.seed),
        task,
        config.advtrain,
        seed=config.seed,
        folder=folder,
        label=f"advtrain {given.point} {config.advtrain.label}",
        companion=second,
        evaluate=held_out.evaluate,
    )
    summary = write_summary(folder, identity, summary | {"pretrain_flops": past.pretrain_flops})
    stage.finish()
    workdirs.say("advtrain", held_out.result(summary["rounds"]))
    return folder


class _Inputs(NamedTuple):
    """What a run works on, found and checked but not loaded."""

    given: GivenModel
    companion: GivenModel | None
    past: Past
    identity: Identity
    task: Task


def _find_inputs(config: AdvtrainRunConfig) -> _Inputs:
    config.model.check_named()
    check_companion_is_named(config.companion, config.attacks, "classifier")
    require_classes(config.task)
    whole_task = load_task(config.task)
    _check_numbers(config, whole_task)
    given = given_model.find(config.model, "classifier", whole_task.num_classes, _NO_HEAD)
    seed, past = given_model.read_past(given)
    if past.trained_on != UNDEFENDED:
        raise UserError(
            f"config.model.path: {given.folder} was hardened already ({past.trained_on}, "
            f"{past.round} rounds), and compute would be counted from anew; give the model that it "
            "started from, or a copy of the folder elsewhere"
        )
    context = given.definition.config.context
    check_edges_reach(
        {
            "config.advtrain.train": config.advtrain.train.edges,
            "config.advtrain.search": config.advtrain.search.edges,
            "config.evaluation.search": config.evaluation.search.edges,
        },
        context,
    )
    num_classes = whole_task.num_classes
    companion = find_companion(config.companion, config.attacks, given, num_classes)
    if companion is not None:
        context = min(context, companion.definition.config.context)
    identity = Identity(given.point, given.family, whole_task.name, seed)
    task = _only_what_fits(config, whole_task, given, context)
    _check_numbers(config, task)
    return _Inputs(given, companion, past, identity, task)


def _only_what_fits(config: AdvtrainRunConfig, task: Task, given: GivenModel, context: int) -> Task:
    """The task without the examples that the context has no room for, beside an attack."""
    evaluated = config.evaluation.attacks.values()
    widths = [module_of(attack).slot_width(attack) for attack in evaluated]
    room = context - max([*widths, config.advtrain.slot_width])
    positions = [*(attack.position for attack in evaluated), *config.advtrain.positions]
    policy = config.task.too_long
    return workdirs.only_what_fits("advtrain", task, given.tokenizer, room, policy, positions)


def _check_numbers(config: AdvtrainRunConfig, task: Task) -> None:
    """What the settings ask of the data."""
    try:
        config.advtrain.check(len(task.split("train")))
    except UserError as error:
        raise UserError(f"config.advtrain: {error}") from error
    wanted, there = config.evaluation.num_examples, len(task.split("validation"))
    if wanted > there:
        raise UserError(
            f"config.evaluation.num_examples={wanted} is more than the {there} validation "
            "examples; lower it (0 takes all), or raise config.task.num_validation"
        )


class _HeldOut:
    """The attacks on validation examples, each a stage of its own below the workdir."""

    def __init__(
        self,
        config: AdvtrainRunConfig,
        folder: Path,
        training: Stage,
        identity: Identity,
        past: Past,
        task: Task,
        companion: Victim | None,
    ):
        """Remembers what every attack needs."""
        self._config, self._folder, self._training = config, folder, training
        self._identity, self._past, self._task = identity, past, task
        self._companion = companion

    def place(self, number: int, name: str) -> Path:
        """The folder of an attack after a round."""
        return self._folder / "evaluation" / f"round-{number:03d}" / name

    def evaluate(
        self, number: int, victim: Victim, defence_flops: int
    ) -> Mapping[str, float | None]:
        """Attacks the victim of a round, unless it was or is not to be; returns success rates."""
        evaluation, last = self._config.evaluation, self._config.advtrain.num_rounds
        if number % evaluation.every and number != last:
            return {}
        rates: dict[str, float | None] = {}
        for name, attack in evaluation.attacks.items():
            leaves = {
                "upstream": self._training.config_hash,
                "round": number,
                "attack": describe(attack),
            }
            folder = self.place(number, name)
            stage = Stage(str(folder), config_hash(leaves, SCHEMA_VERSION), leaves)
            if not stage.is_done():
                stage.start()
                self._attack(folder, name, number, victim, defence_flops)
                stage.finish()
            rates[f"{name}_success_rate"] = self.rate(number, name)
        return rates

    def rate(self, number: int, name: str) -> float | None:
        """The success rate of an attack after a round; None if nothing could be attacked."""
        path = self.place(number, name) / "summary.json"
        summary = distributed.from_primary(lambda: read_json(path), str(path))
        return summary[rate_names(summary["variant"]).rate]

    def _attack(
        self, folder: Path, name: str, number: int, victim: Victim, defence_flops: int
    ) -> None:
        evaluation = self._config.evaluation
        hardened = dataclasses.replace(
            self._past,
            trained_on=self._config.advtrain.label,
            round=number,
            defence_flops=defence_flops,
        )
        attack_into(
            folder,
            victim,
            self._identity,
            hardened if number else self._past,
            self._task.split("validation"),
            self._task.chunk_kinds,
            name,
            evaluation.attacks[name],
            seed=evaluation.seed,
            search=evaluation.search,
            num_examples=evaluation.num_examples,
            label=f"held out, round {number} {name}",
            companion=self._companion,
        )

    def result(self, rounds: list[dict[str, Any]]) -> str:
        """A sentence on what the rounds brought."""
        parts = [f"clean accuracy {rounds[-1]['accuracy']:.3f} after {len(rounds)} rounds"]
        for name in self._config.evaluation.attacks:
            before, after = (_percent(self.rate(number, name)) for number in (0, len(rounds)))
            parts.append(f"{name} breaks {after} (before: {before})")
        return "; ".join(parts)


def _percent(rate: float | None) -> str:
    return "none, for none is attacked" if rate is None else f"{100 * rate:.0f} %"
