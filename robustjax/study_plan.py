"""What a study is made of: a list of stages in a fixed order.

    tokenizer -> per scaling point and seed: (pretrain) -> fine-tune -> attack -> adversarial rounds
    (one run for each training attack) -> attack every round -> report

A stage owns a folder below the workdir, names in its hash everything that defines its result (its
own settings and, through the hash, those of the stages before it), and is skipped when it is done.
Meshes, workers, paths, checkpoint intervals and the bar for accuracy are outside the hash.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustjax.analysis.report import write_report
from robustjax.analysis.stages import UNDEFENDED
from robustjax.attacks.search import Attack, check_companion, module_of
from robustjax.data.lengths import fit, named_difference
from robustjax.data.prompts import Task
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.models import registry
from robustjax.models.checksum import folder_sha256
from robustjax.models.classifier_head import as_classifier
from robustjax.models.fresh import fresh_victim, ladder_tokenizer
from robustjax.models.model_folder import find_model, load_model, stored_definition
from robustjax.models.transformer import Definition, Head
from robustjax.models.victim import Victim
from robustjax.runtime.checkpoint import load_metadata
from robustjax.runtime.mesh import AxisRules, make_mesh
from robustjax.runtime.runlog import config_hash, read_json
from robustjax.runtime.stages import Stage
from robustjax.runtime.workers import Job
from robustjax.settings import PointConfig, StudyConfig, describe
from robustjax.stage_work import (
    FROM_SCRATCH,
    Identity,
    Past,
    attack_into,
    finetune_into,
    task_leaves,
    without,
    write_summary,
)
from robustjax.training.adversarial import AdversarialConfig, train_adversarially
from robustjax.training.finetune import FinetuneConfig
from robustjax.training.loop import OUTSIDE_RESULTS
from robustjax.training.rounds import round_folder

SCHEMA_VERSION = 1
"""Raised when the meaning of a hashed leaf changes."""


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """One stage: its place, what defines it, and what does it.

    Attributes:
        job: what it is a part of when several workers share a study; None for what is before and
            after everything else.
    """

    name: str
    job: Job | None
    stage: Stage
    leaves: dict[str, Any]
    execute: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return Path(str(self.stage.folder))

    def run(self) -> None:
        """Runs the stage from where it was left."""
        self.stage.start()
        self.execute(self.folder)
        self.stage.finish()


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model of ours on the disk, or one that will be there."""

    folder: Path
    definition: Definition
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.folder)

    @functools.cached_property
    def weights(self) -> str:
        """The checksum of its weights."""
        return folder_sha256(self.folder, is_ours=True)


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
        self._mesh = make_mesh(config.mesh)
        self._rules = AxisRules()
        self._stages: list[PlannedStage] = []

    def plan(self) -> list[PlannedStage]:
        """All stages in the order in which they run; nothing is written yet.

        Raises:
            UserError: examples that do not fit, a task too small for the settings, or a point
                that was trained already and does not reach `min_accuracy`.
        """
        tokenizer = self._add("tokenizer", {"vocab": registry.NANO_VOCAB}, self._save_tokenizer)
        self._tokenizer = (
            Tokenizer.load(tokenizer.folder)
            if tokenizer.stage.is_done()
            else self._train_tokenizer()
        )
        self._companion = self._find_companion()
        self._leave_out_what_is_too_long()
        points = self._config.points  # a config sorts them by name
        for point in sorted(points, key=_size):
            for seed in self._config.seeds:
                self._add_point(point, points[point], seed, tokenizer)
        self._add("report", {"stages": self.leaves}, self._report)
        return self._stages

    @property
    def leaves(self) -> dict[str, Any]:
        """What defines the study: the hashes of its stages."""
        return {planned.name: planned.stage.config_hash for planned in self._stages}

    def _find_companion(self) -> StoredModel | None:
        """The second model of the attacks that ask one; its weights are not loaded yet."""
        evaluation = self._config.evaluation
        if not evaluation.companion:
            return None
        folder = find_model(Path(evaluation.companion).expanduser().resolve())
        if folder is None:
            raise UserError(
                f"evaluation.companion={evaluation.companion}: no model of ours is there; give its "
                "folder or the workdir of a training"
            )
        definition = stored_definition(folder, load_metadata(folder))
        found = StoredModel(folder, definition, Tokenizer.load(folder))
        for point in self._config.points:
            shape = registry.scaling_point(point).config
            answers = Definition(shape, num_classes=self.task.num_classes)
            victim = StoredModel(Path(point), answers, self._tokenizer)
            for attack in [*evaluation.attacks.values(), *self._training_attacks(point)]:
                if attack.needs_companion:
                    check_companion(attack, victim, found)
        return found

    def _training_attacks(self, point: str) -> list[Attack]:
        runs = self._config.points[point].advtrain.values()
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
        attacks = config.evaluation.attacks.values()
        trainings = [run for one in config.points.values() for run in one.advtrain.values()]
        widths = [module_of(attack).slot_width(attack) for attack in attacks]
        positions = [attack.position for attack in attacks]
        widths += [run.slot_width for run in trainings]
        positions += [position for run in trainings for position in run.positions]
        context = min(registry.scaling_point(name).config.context for name in config.points)
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
    ) -> PlannedStage:
        leaves = {
            "task": task_leaves(self._config.task, self.task),
            "upstream": upstream.stage.config_hash if upstream else "",
            **leaves,
        }
        digest = config_hash(leaves, SCHEMA_VERSION)
        stage = Stage(str(self._workdir / name), digest, leaves)
        planned = PlannedStage(name, job, stage, leaves, run)
        self._stages.append(planned)
        return planned

    def _add_point(
        self, point: str, settings: PointConfig, seed: int, tokenizer: PlannedStage
    ) -> None:
        who = f"{point}-s{seed}"
        evaluation, model = self._config.evaluation, registry.scaling_point(point).config
        train = Job(who)
        weights = {
            "point": point,
            "seed": seed,
            "numerics": describe(settings.numerics),
            "remat": registry.layer_loop(model, settings.remat)["remat"],
        }
        before = tokenizer
        if settings.pretrain is not None:
            before = self._add(
                f"pretrain/{who}",
                weights | {"pretrain": _training_leaves(settings.pretrain)},
                lambda folder: self._pretrain(folder, point, settings, seed),
                tokenizer,
                train,
            )
            before.stage.is_done()  # refuses another config by its field, not by the hash of it
        trained = self._add(
            f"finetune/{who}",
            weights | {"finetune": _training_leaves(settings.finetune)},
            lambda folder: self._finetune(folder, point, settings, seed),
            before,
            train,
        )
        if trained.stage.is_done():
            self._check_accuracy(point, seed)
        for name in evaluation.attacks:
            self._add_attack(
                point, settings, seed, name, trained, UNDEFENDED, 0, evaluation.num_examples
            )
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
                    self._advtrain,
                    point=point,
                    settings=settings,
                    seed=seed,
                    trained_on=trained_on,
                ),
                trained,
                harden,
            )
            last = advtrain.num_rounds
            for number in range(1, last + 1):
                for name in evaluation.attacks:
                    is_own = name == trained_on and name in evaluation.every_round
                    if number == last or is_own:
                        between = evaluation.num_examples_between if number < last else 0
                        self._add_attack(
                            point,
                            settings,
                            seed,
                            name,
                            hardened,
                            trained_on,
                            number,
                            between or evaluation.num_examples,
                        )

    def _add_attack(
        self,
        point: str,
        settings: PointConfig,
        seed: int,
        attack: str,
        upstream: PlannedStage,
        trained_on: str,
        number: int,
        num_examples: int,
    ) -> None:
        evaluation = self._config.evaluation
        self._add(
            f"attack/{point}-s{seed}/{trained_on}-r{number}/{attack}",
            {
                "attack": describe(evaluation.attacks[attack]),
                "num_examples": num_examples,
                "seed": evaluation.seed,
                "round": number,
                "search": describe(settings.search),
                **self._companion_leaves(evaluation.attacks[attack]),
            },
            lambda folder: self._attack(
                folder, point, settings, seed, attack, trained_on, number, num_examples
            ),
            upstream,
            upstream.job,
        )

    def _companion_leaves(self, asking: Attack | AdversarialConfig) -> dict[str, Any]:
        """What the hash of an attack, or of a training, names of the model that it asks, if any."""
        if self._companion is None or not asking.needs_companion:
            return {}
        return {"companion": {"weights": self._companion.weights}}

    def _save_tokenizer(self, folder: Path) -> None:
        self._tokenizer.save(folder)

    def _train_tokenizer(self) -> Tokenizer:
        return ladder_tokenizer(example.text for example in self._all_of_task.split("train"))

    def _identity(self, point: str, seed: int) -> Identity:
        return Identity(point, registry.scaling_point(point).family, self.task.name, seed)

    def _finetune_folder(self, point: str, seed: int) -> Path:
        return self._workdir / "finetune" / f"{point}-s{seed}"

    def _pretrain_folder(self, point: str, seed: int) -> Path:
        return self._workdir / "pretrain" / f"{point}-s{seed}"

    def _fresh(self, point: str, settings: PointConfig, seed: int, head: Head) -> Victim:
        return fresh_victim(
            point,
            self._tokenizer,
            num_classes=self.task.num_classes,
            seed=seed,
            mesh=self._mesh,
            rules=self._rules,
            numerics=settings.numerics,
            remat=settings.remat,
            head=head,
        )

    def _pretrain(self, folder: Path, point: str, settings: PointConfig, seed: int) -> None:
        assert settings.pretrain is not None  # or there would be no such stage
        finetune_into(
            folder,
            self._fresh(point, settings, seed, "lm"),
            self._identity(point, seed),
            self.task,
            settings.pretrain,
        )

    def _finetune(self, folder: Path, point: str, settings: PointConfig, seed: int) -> None:
        pretrain_flops = None
        if settings.pretrain is None:
            victim, started_from = self._fresh(point, settings, seed, "classifier"), FROM_SCRATCH
        else:
            base = self._pretrain_folder(point, seed)
            victim = as_classifier(self._load(base, settings), self.task.num_classes, seed)
            started_from = folder_sha256(base / "model", is_ours=True)
            pretrain_flops = read_json(base / "summary.json")["pretrain_flops"]
        finetune_into(
            folder,
            victim,
            self._identity(point, seed),
            self.task,
            settings.finetune,
            started_from=started_from,
            pretrain_flops=pretrain_flops,
        )

    def _trained(self, point: str, settings: PointConfig, seed: int) -> Victim:
        """The fine-tuned victim, if it learned the task well enough to be worth attacking."""
        self._check_accuracy(point, seed)
        return self._load(self._finetune_folder(point, seed), settings)

    def _load(self, folder: Path, settings: PointConfig) -> Victim:
        """What a run of training left in its folder."""
        return load_model(
            folder / "model", self._mesh, self._rules, settings.numerics, remat=settings.remat
        )

    def _clean_summary(self, point: str, seed: int) -> dict[str, Any]:
        return read_json(self._finetune_folder(point, seed) / "summary.json")

    def _check_accuracy(self, point: str, seed: int) -> None:
        summary = self._clean_summary(point, seed)
        reached, wanted = summary["validation_accuracy"], self._config.evaluation.min_accuracy
        if reached < wanted:
            raise UserError(
                f"{point} reaches a clean accuracy of {reached:.3f} on {self.task.name}, below "
                f"evaluation.min_accuracy={wanted}; train longer (points.{point}.finetune) in "
                "another --workdir, or lower the bar"
            )

    def _advtrain(
        self, folder: Path, point: str, settings: PointConfig, seed: int, trained_on: str
    ) -> None:
        _, summary = train_adversarially(
            self._trained(point, settings, seed),
            self.task,
            settings.advtrain[trained_on],
            seed=seed,
            folder=folder,
            label=f"advtrain {point} {trained_on}",
            companion=self._load_companion(settings.advtrain[trained_on], settings),
        )
        identity = self._identity(point, seed)
        origin = {"pretrain_flops": self._clean_summary(point, seed)["pretrain_flops"]}
        write_summary(folder, identity, summary | {"trained_on": trained_on} | origin)

    def _attack(
        self,
        folder: Path,
        point: str,
        settings: PointConfig,
        seed: int,
        name: str,
        trained_on: str,
        number: int,
        num_examples: int,
    ) -> None:
        evaluation = self._config.evaluation
        if number == 0:
            victim, defence_flops = self._trained(point, settings, seed), 0
        else:
            hardened = self._workdir / "advtrain" / f"{point}-s{seed}" / trained_on
            victim = self._load(round_folder(hardened, number), settings)
            rounds = read_json(hardened / "summary.json")["rounds"]
            defence_flops = rounds[number - 1]["flops_total"]
        pretrain_flops = self._clean_summary(point, seed)["pretrain_flops"]
        attack_into(
            folder,
            victim,
            self._identity(point, seed),
            Past(trained_on, number, defence_flops, pretrain_flops),
            self.task.split("validation"),
            self.task.chunk_kinds,
            name,
            evaluation.attacks[name],
            seed=evaluation.seed,
            search=settings.search,
            num_examples=num_examples,
            label=f"attack {point} {trained_on}-r{number} {name}",
            companion=self._load_companion(evaluation.attacks[name], settings),
        )

    def _load_companion(
        self, asking: Attack | AdversarialConfig, settings: PointConfig
    ) -> Victim | None:
        if self._companion is None or not asking.needs_companion:
            return None
        folder = self._companion.folder
        return load_model(folder, self._mesh, self._rules, settings.numerics, remat=settings.remat)

    def _report(self, folder: Path) -> None:
        write_report([self._workdir], folder)


def _training_leaves(config: FinetuneConfig) -> dict[str, Any]:
    """What defines the result of clean training; the stage's own name says its objective."""
    return without(config, *OUTSIDE_RESULTS, "objective")


def _size(point: str) -> int:
    return registry.scaling_point(point).classifier_params
