"""What a study is made of: a list of stages in a fixed order.

    tokenizer -> per scaling point and seed: fine-tune -> attack -> adversarial rounds (one run for
    each training attack) -> attack every round -> report

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
from robustjax.attacks.search import module_of
from robustjax.data.lengths import fit, named_difference
from robustjax.data.prompts import Task
from robustjax.data.tasks import TaskConfig
from robustjax.data.tokens import Tokenizer, train_byte_bpe
from robustjax.errors import UserError
from robustjax.evaluation import records
from robustjax.evaluation.evaluate import attack_examples
from robustjax.models import registry
from robustjax.models import victim as victims
from robustjax.models.model_folder import load_model
from robustjax.models.transformer import Definition
from robustjax.models.victim import Victim
from robustjax.runtime.mesh import AxisRules, make_mesh
from robustjax.runtime.runlog import config_hash, read_json, versions, write_json
from robustjax.runtime.stages import Stage
from robustjax.runtime.workers import Job
from robustjax.settings import PointConfig, StudyConfig, describe
from robustjax.training.adversarial import AdversarialConfig, round_folder, train_adversarially
from robustjax.training.finetune import FinetuneConfig, finetune

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
            parts |= {f"advtrain.{name}": one for name, one in settings.advtrain.items()}
            for field, part in parts.items():
                try:
                    part.check(num_train)
                except UserError as error:
                    raise UserError(f"points.{point}.{field}: {error}") from error

    def _leave_out_what_is_too_long(self) -> None:
        config = self._config
        attacks = list(config.evaluation.attacks.values())
        for settings in config.points.values():
            attacks += [one.attack for one in settings.advtrain.values()]
        context = min(registry.scaling_point(name).config.context for name in config.points)
        room = context - max(module_of(attack).slot_width(attack) for attack in attacks)
        positions = [attack.position for attack in attacks]
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
            "task": _task_leaves(self._config.task, self.task),
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
        evaluation = self._config.evaluation
        train = Job(who)
        trained = self._add(
            f"finetune/{who}",
            {
                "point": point,
                "seed": seed,
                "numerics": describe(settings.numerics),
                "remat": self._layers(point, settings)["remat"],
                "finetune": _without(settings.finetune, "checkpoint_every"),
            },
            lambda folder: self._finetune(folder, point, settings, seed),
            tokenizer,
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
                {"seed": seed, "advtrain": describe(advtrain)},
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
            },
            lambda folder: self._attack(
                folder, point, settings, seed, attack, trained_on, number, num_examples
            ),
            upstream,
            upstream.job,
        )

    def _save_tokenizer(self, folder: Path) -> None:
        self._tokenizer.save(folder)

    def _train_tokenizer(self) -> Tokenizer:
        texts = [example.text for example in self._all_of_task.split("train")]
        return train_byte_bpe(texts, registry.NANO_VOCAB)

    def _fresh_victim(self, point: str, settings: PointConfig, seed: int) -> Victim:
        """The scaling point with freshly drawn weights."""
        facts = registry.scaling_point(point)
        definition = Definition(
            facts.config,
            num_classes=self.task.num_classes,
            numerics=settings.numerics,
            **self._layers(point, settings),
        )
        return Victim(
            point,
            facts.family,
            definition,
            victims.init_params(definition, seed, self._mesh, self._rules),
            self._tokenizer,
            self._mesh,
            self._rules,
        )

    @staticmethod
    def _layers(point: str, settings: PointConfig) -> dict[str, Any]:
        """How the layers are run: as suits the model, unless the config says otherwise."""
        usual = registry.layer_loop(registry.scaling_point(point).config)
        return usual | ({} if settings.remat is None else {"remat": settings.remat})

    def _finetune_folder(self, point: str, seed: int) -> Path:
        return self._workdir / "finetune" / f"{point}-s{seed}"

    def _finetune(self, folder: Path, point: str, settings: PointConfig, seed: int) -> None:
        _, summary = finetune(
            self._fresh_victim(point, settings, seed),
            self.task,
            settings.finetune,
            seed=seed,
            folder=folder,
            label=f"finetune {point}",
        )
        self._write_summary(folder, point, seed, summary)

    def _trained(self, point: str, settings: PointConfig, seed: int) -> Victim:
        """The fine-tuned victim, if it learned the task well enough to be worth attacking."""
        self._check_accuracy(point, seed)
        return self._load(self._finetune_folder(point, seed), settings)

    def _load(self, folder: Path, settings: PointConfig) -> Victim:
        """What a run of training left in its folder."""
        return load_model(
            folder / "model", self._mesh, self._rules, settings.numerics, remat=settings.remat
        )

    def _check_accuracy(self, point: str, seed: int) -> None:
        summary = read_json(self._finetune_folder(point, seed) / "summary.json")
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
        )
        self._write_summary(folder, point, seed, summary | {"trained_on": trained_on})

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
        evaluation, attack = self._config.evaluation, self._config.evaluation.attacks[name]
        if number == 0:
            victim, defence_flops = self._trained(point, settings, seed), 0
        else:
            hardened = self._workdir / "advtrain" / f"{point}-s{seed}" / trained_on
            victim = self._load(round_folder(hardened, number), settings)
            rounds = read_json(hardened / "summary.json")["rounds"]
            defence_flops = rounds[number - 1]["flops_total"]
        found, timing = attack_examples(
            victim,
            self.task.split("validation"),
            self.task.chunk_kinds,
            attack,
            seed=evaluation.seed,
            config=settings.search,
            max_attacked=num_examples,
            path=folder / "attack_records.jsonl",
            label=f"attack {point} {trained_on}-r{number} {name}",
        )
        trained = read_json(self._finetune_folder(point, seed) / "summary.json")
        summary = {
            "kind": "attack",
            "num_params": victim.num_params,
            "attack": name,
            "attack_config": describe(attack),
            "trained_on": trained_on,
            "round": number,
            "position": attack.position,
            "seed": evaluation.seed,
            "defence_flops": defence_flops,
            # The nano ladder has no other pretraining than its clean training from scratch.
            "pretrain_flops": trained["flops_algorithmic"],
        } | records.summarise(found)
        write_json(folder / "timing.json", timing.to_json())
        self._write_summary(folder, point, seed, summary)

    def _write_summary(self, folder: Path, point: str, seed: int, summary: dict[str, Any]) -> None:
        digest = read_json(folder / "stage.json")["config_hash"]
        common = {
            "point": point,
            "model_family": registry.scaling_point(point).family,
            "task": self.task.name,
            "victim_seed": seed,
            "config_hash": digest,
            "versions": versions(),
        }
        write_json(folder / "summary.json", summary | common)

    def _report(self, folder: Path) -> None:
        write_report([self._workdir], folder)


def _size(point: str) -> int:
    return registry.scaling_point(point).classifier_params


def _task_leaves(config: TaskConfig, task: Task) -> dict[str, Any]:
    """The data set by content: sizes, seed and the hashes of files, wherever they lie."""
    return _without(config, "train_path", "validation_path", "too_long") | {"source": task.source}


def _without(config: Any, *names: str) -> dict[str, Any]:
    return {name: value for name, value in describe(config).items() if name not in names}
