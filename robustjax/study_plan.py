"""What a study is made of: a list of stages in a fixed order.

    tokenizer -> (sampler) -> per scaling point and seed: (pretrain) -> fine-tune -> attack ->
    adversarial rounds (one run for each training attack) -> attack what is left of them -> report

A stage owns a folder below the workdir, names in its hash everything that defines its result (its
own settings and, through the hash, those of the stages before it), and is skipped when it is done.
Meshes, workers, paths, checkpoint intervals and the bar for accuracy are outside the hash.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robustjax import given_model
from robustjax.attacks.search import Attack, check_companion, companion_head, module_of
from robustjax.data.lengths import fit, named_difference
from robustjax.data.prompts import Task
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.evaluation.flops import Flops
from robustjax.evaluation.records import UNDEFENDED
from robustjax.evaluation.transfer import Cell, cells
from robustjax.given_model import GivenModel, ModelConfig
from robustjax.models import registry
from robustjax.models.fresh import ladder_tokenizer
from robustjax.models.layers import Numerics
from robustjax.models.port import ModelConfig as PortConfig
from robustjax.models.transformer import Definition
from robustjax.runtime.mesh import make_mesh
from robustjax.runtime.runlog import config_hash
from robustjax.runtime.stages import Stage
from robustjax.runtime.workers import Job
from robustjax.settings import PointConfig, SamplerConfig, StudyConfig, describe
from robustjax.stage_work import task_leaves, without
from robustjax.study_costs import NOTHING, StudyCosts
from robustjax.study_work import Companion, FutureModel, StudyWork
from robustjax.training.adversarial import AdversarialConfig
from robustjax.training.finetune import FinetuneConfig
from robustjax.training.loop import OUTSIDE_RESULTS

SCHEMA_VERSION = 1
"""Raised when the meaning of a hashed leaf changes."""


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """One stage: its place, what defines it, and what does it.

    Attributes:
        job: what it is a part of when several workers share a study; None for what is before and
            after everything else.
        cost: what it takes, at most.
        point: the scaling point that it works on; empty if on none.
    """

    name: str
    job: Job | None
    stage: Stage
    leaves: dict[str, Any]
    execute: Callable[[Path], None]
    cost: Callable[[], Flops] = lambda: NOTHING
    point: str = ""

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return Path(str(self.stage.folder))

    def run(self) -> None:
        """Runs the stage from where it was left."""
        self.stage.start()
        self.execute(self.folder)
        self.stage.finish()


class Planner:
    """Lists the stages; a stage knows the ones it stands on by their hashes.

    Attributes:
        task: the data set, after `plan` without the examples that do not fit.
        left_out: a sentence on those, for the user; empty if there are none.
    """

    def __init__(self, config: StudyConfig, task: Task, workdir: Path):
        self._config, self._workdir = config, workdir
        self._all_of_task, self.task = task, task
        self.left_out = ""
        self._check_data(task)
        for mesh in filter(None, (config.mesh, config.attack_mesh)):
            make_mesh(mesh)  # refuses one that the devices do not make up
        self._stages: list[PlannedStage] = []

    def plan(self) -> list[PlannedStage]:
        """All stages in the order in which they run; nothing is written yet.

        Raises:
            UserError: examples that do not fit, a task too small for the settings, or a point
                that was trained already and does not reach `min_accuracy`.
        """
        self._given = self._find_given()
        tokenizer = self._add_tokenizer()
        self._companion = self._find_companion()
        self._leave_out_what_is_too_long()
        if self._config.evaluation.sampler is not None:
            self._companion = self._add_sampler(self._config.evaluation.sampler, tokenizer)
        self._check_companion()
        self._work = StudyWork(
            config=self._config,
            workdir=self._workdir,
            task=self.task,
            tokenizer=self._tokenizer,
            companion=self._companion,
            given=self._given,
        )
        self._costs = StudyCosts(
            task=self.task,
            tokenizer=self._tokenizer,
            shapes={point: self._shape(point) for point in self._config.points},
            companion=self._companion,
        )
        points = self._config.points  # a config sorts them by name
        for point in sorted(points, key=_size):
            for seed in self._config.seeds:
                self._add_point(point, points[point], seed, tokenizer)
        self._add("report", {"stages": self.leaves}, self._work.report)
        return self._stages

    def definition(self, point: str) -> Definition:
        """What a point's classifiers are; after `plan`."""
        settings = self._config.points.get(point) or PointConfig(FinetuneConfig(), {})
        return self._costs.definition(point, settings, "classifier")

    def typical_width(self, edges: tuple[int, ...]) -> int:
        """The width that most training texts are padded to; after `plan`."""
        return self._costs.typical_width(edges)

    @property
    def leaves(self) -> dict[str, Any]:
        """What defines the study: the hashes of its stages."""
        return {planned.name: planned.stage.config_hash for planned in self._stages}

    def _find_given(self) -> dict[str, GivenModel]:
        """What points start from that have weights already; nothing is loaded yet."""
        found = {}
        for point, settings in self._config.points.items():
            if self._config.starts_from_weights(point):
                model = ModelConfig(point, settings.path)
                field = f"points.{point}"
                classes = self.task.num_classes
                found[point] = given_model.find(model, "classifier", classes, field=field)
        return found

    def _add_tokenizer(self) -> PlannedStage:
        """The stage that leaves what all points read with."""
        if self._given:
            first, *others = self._given.items()
            for point, model in others:
                if model.tokenizer.fingerprint != first[1].tokenizer.fingerprint:
                    raise UserError(
                        f"points: {point} has another tokenizer than {first[0]}; make two studies "
                        "of them"
                    )
            self._tokenizer = first[1].tokenizer
            leaves: dict[str, Any] = {"fingerprint": self._tokenizer.fingerprint}
        else:
            leaves = {"vocab": registry.NANO_VOCAB}
        planned = self._add("tokenizer", leaves, lambda folder: self._work.save_tokenizer(folder))
        if not self._given:
            self._tokenizer = (
                Tokenizer.load(planned.folder)
                if planned.stage.is_done()
                else ladder_tokenizer(example.text for example in self._all_of_task.split("train"))
            )
        return planned

    def _shape(self, point: str) -> PortConfig:
        """The shape of a point's models."""
        given = self._given.get(point)
        return registry.scaling_point(point).config if given is None else given.definition.config

    def _find_companion(self) -> Companion | None:
        """The second model of the attacks that ask one; its weights are not loaded yet."""
        evaluation = self._config.evaluation
        if not evaluation.companion:
            return None
        attacks = [*self._evaluation_attacks(), *self._training_attacks()]
        asking = [attack for attack in attacks if attack.needs_companion]
        # A perplexity filter alone asks a language model.
        head = companion_head(asking[0], "classifier") if asking else "lm"
        try:
            return given_model.find(
                ModelConfig(path=evaluation.companion),
                head,
                self.task.num_classes,
                "fine-tune it on the task first (robustjax finetune)",
                field="companion",
            )
        except UserError as error:
            raise UserError(f"evaluation.companion={evaluation.companion}: {error}") from error

    def _add_sampler(self, sampler: SamplerConfig, tokenizer: PlannedStage) -> FutureModel:
        """The stage that trains it, before all that may ask it."""
        stage = self._add(
            "sampler",
            {
                "point": sampler.point,
                "seed": sampler.seed,
                "pretrain": _training_leaves(sampler.train),
            },
            lambda folder: self._work.train_sampler(folder, sampler),
            tokenizer,
            point=sampler.point,
            cost=lambda: self._costs.sampler(sampler),
        )
        shape = registry.scaling_point(sampler.point).config
        definition = Definition(shape, head="lm", **registry.layer_loop(shape))
        digest = stage.stage.config_hash
        return FutureModel(stage.folder / "model", definition, self._tokenizer, digest)

    def _check_companion(self) -> None:
        """That the second model goes together with every victim whose attacks ask it."""
        if self._companion is None:
            return
        head = self._companion.definition.head
        if self._config.evaluation.perplexity_filter is not None and head != "lm":
            raise UserError(
                f"evaluation.perplexity_filter asks a language model, and evaluation.companion="
                f"{self._config.evaluation.companion} is a {head}"
            )
        for point in self._config.points:
            answers = Definition(self._shape(point), num_classes=self.task.num_classes)
            victim = FutureModel(Path(point), answers, self._tokenizer)
            for attack in [*self._evaluation_attacks(), *self._training_attacks(point)]:
                if attack.needs_companion:
                    check_companion(attack, victim, self._companion)

    def _evaluation_attacks(self) -> list[Attack]:
        """All that the transfer matrix asks for, each once."""
        attacks = (
            cell.attack
            for point, settings in self._config.points.items()
            for seed in self._config.seeds
            for trained_on, rounds in [
                (UNDEFENDED, 0),
                *((name, run.num_rounds) for name, run in settings.advtrain.items()),
            ]
            for cell in self._cells(point, seed, trained_on, rounds)
        )
        return list(dict.fromkeys(attacks))

    def _training_attacks(self, point: str | None = None) -> list[Attack]:
        """Those of one point, or of all."""
        points = self._config.points
        chosen = points.values() if point is None else [points[point]]
        runs = [run for one in chosen for run in one.advtrain.values()]
        return [one.attack for run in runs for one in run.attacks.values()]

    def _check_data(self, task: Task) -> None:
        """What the settings ask of the data; checked before anything is computed."""
        evaluation = self._config.evaluation
        num_validation, num_train = len(task.split("validation")), len(task.split("train"))
        if evaluation.num_examples > num_validation:
            raise UserError(
                f"evaluation.num_examples={evaluation.num_examples} is more than the "
                f"{num_validation} validation examples; lower it, or raise task.num_validation"
            )
        for point, settings in self._config.points.items():
            parts: dict[str, FinetuneConfig | AdversarialConfig] = {"finetune": settings.finetune}
            if settings.pretrain is not None:
                parts["pretrain"] = settings.pretrain
            parts |= {f"advtrain.{name}": one for name, one in settings.advtrain.items()}
            for field, part in parts.items():
                try:
                    part.check(num_train)
                except UserError as error:
                    raise UserError(f"points.{point}.{field}: {error}") from error

    def _leave_out_what_is_too_long(self) -> None:
        config = self._config
        attacks = self._evaluation_attacks()
        trainings = [run for one in config.points.values() for run in one.advtrain.values()]
        widths = [module_of(attack).slot_width(attack) for attack in attacks]
        positions = [attack.position for attack in attacks]
        widths += [run.slot_width for run in trainings]
        positions += [position for run in trainings for position in run.positions]
        context = min(self._shape(name).context for name in config.points)
        if self._companion is not None:
            context = min(context, self._companion.definition.config.context)
        room = context - max(widths)
        given = self.task
        self.task = fit(given, self._tokenizer, room, config.task.too_long, positions)
        if any(self.task.source["dropped_too_long"].values()):
            self._check_data(self.task)
            train = named_difference(given.train, self.task.train)
            validation = named_difference(given.validation, self.task.validation)
            self.left_out = (
                f"dropped {train} training and {validation} validation examples of more than "
                f"{room} tokens"
            )

    def _add(
        self,
        name: str,
        leaves: dict[str, Any],
        run: Callable[[Path], None],
        upstream: PlannedStage | None = None,
        job: Job | None = None,
        *,
        point: str = "",
        cost: Callable[[], Flops] = lambda: NOTHING,
    ) -> PlannedStage:
        leaves = {
            "task": task_leaves(self._config.task, self.task),
            "upstream": upstream.stage.config_hash if upstream else "",
            **leaves,
        }
        digest = config_hash(leaves, SCHEMA_VERSION)
        stage = Stage(str(self._workdir / name), digest, leaves)
        planned = PlannedStage(name, job, stage, leaves, run, cost, point)
        self._stages.append(planned)
        return planned

    def _add_point(
        self, point: str, settings: PointConfig, seed: int, tokenizer: PlannedStage
    ) -> None:
        who = f"{point}-s{seed}"
        train = Job(who)
        weights = {
            "point": point,
            "seed": seed,
            "numerics": describe(settings.numerics),
            "remat": registry.layer_loop(self._shape(point), settings.remat)["remat"],
        }
        if point in self._given:
            weights["model"] = self._given[point].leaves(settings.numerics)
        before = tokenizer
        pretrain = settings.pretrain
        if pretrain is not None:
            before = self._add(
                f"pretrain/{who}",
                weights | {"pretrain": _training_leaves(pretrain)},
                lambda folder: self._work.pretrain(folder, point, settings, seed),
                tokenizer,
                train,
                point=point,
                cost=lambda: self._costs.clean(point, settings, pretrain),
            )
            before.stage.is_done()  # refuses another config by its field, not by the hash of it
        trained = self._add(
            f"finetune/{who}",
            weights | {"finetune": _training_leaves(settings.finetune)},
            lambda folder: self._work.finetune(folder, point, settings, seed),
            before,
            train,
            point=point,
            cost=lambda: self._costs.clean(point, settings, settings.finetune),
        )
        if trained.stage.is_done():
            self._work.check_accuracy(point, seed)
        for cell in self._cells(point, seed, UNDEFENDED):
            self._add_attack(point, settings, seed, trained, UNDEFENDED, cell)
        for trained_on, advtrain in settings.advtrain.items():
            harden = Job(f"{who}/{trained_on}", after=who)
            hardened = self._add(
                f"advtrain/{who}/{trained_on}",
                {
                    "seed": seed,
                    "advtrain": without(advtrain, *OUTSIDE_RESULTS),
                    **self._companion_leaves(advtrain),
                },
                functools.partial(
                    self._work.advtrain,
                    point=point,
                    settings=settings,
                    seed=seed,
                    trained_on=trained_on,
                ),
                trained,
                harden,
                point=point,
                cost=functools.partial(self._costs.hardening, point, settings, advtrain),
            )
            for cell in self._cells(point, seed, trained_on, advtrain.num_rounds):
                self._add_attack(point, settings, seed, hardened, trained_on, cell)

    def _cells(self, point: str, seed: int, trained_on: str, num_rounds: int = 0) -> Iterator[Cell]:
        """What of the transfer matrix is about one victim."""
        evaluation = self._config.evaluation
        return cells(
            *(evaluation.transfer, evaluation.attacks, evaluation.num_examples),
            point=point,
            seed=seed,
            trained_on=trained_on,
            num_rounds=num_rounds,
        )

    def _add_attack(
        self,
        point: str,
        settings: PointConfig,
        seed: int,
        upstream: PlannedStage,
        trained_on: str,
        cell: Cell,
    ) -> None:
        self._add(
            f"attack/{point}-s{seed}/{trained_on}-r{cell.round}/{cell.label}",
            {
                "attack": describe(cell.attack),
                "num_examples": cell.num_examples,
                "seed": self._config.evaluation.seed,
                "round": cell.round,
                "search": describe(settings.search),
                **_numerics_leaves(settings),
                **self._companion_leaves(cell.attack),
                **self._filter_leaves(),
            },
            lambda folder: self._work.attack(folder, point, settings, seed, trained_on, cell),
            upstream,
            upstream.job,
            point=point,
            cost=lambda: self._costs.attack(point, settings, cell),
        )

    def _filter_leaves(self) -> dict[str, Any]:
        """What the hash of an attack names of the filter that looks at its texts, if any."""
        config = self._config.evaluation.perplexity_filter
        if config is None or self._companion is None:
            return {}
        model = self._companion.leaves(Numerics())
        return {"perplexity_filter": describe(config) | {"model": model}}

    def _companion_leaves(self, asking: Attack | AdversarialConfig) -> dict[str, Any]:
        """What the hash of an attack, or of a training, names of the model that it asks, if any."""
        if self._companion is None or not asking.needs_companion:
            return {}
        return {"companion": self._companion.leaves(Numerics())}


def _training_leaves(config: FinetuneConfig) -> dict[str, Any]:
    """What defines the result of clean training; the stage's own name says its objective."""
    return without(config, *OUTSIDE_RESULTS, "objective")


def _numerics_leaves(settings: PointConfig) -> dict[str, Any]:
    """What the hash of an attack names of number formats: those that are not of training."""
    numerics = settings.attack_numerics
    return {} if numerics in (None, settings.numerics) else {"numerics": describe(numerics)}


def _size(point: str) -> int:
    return registry.scaling_point(point).classifier_params
