"""The whole loop over a ladder of models, as a list of stages in a fixed order.

    tokenizer -> per scaling point and seed: fine-tune -> attack -> adversarial rounds (one run for
    each training attack) -> attack every round -> report

A stage owns a folder below the workdir, names in its hash everything that defines its result (its own
settings and, through the hash, those of the stages before it), and is skipped when it is done. Meshes,
paths and checkpoint intervals are outside the hash.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustjax.analysis.report import write_report
from robustjax.attacks.search import Attack, SearchConfig
from robustjax.data.prompts import Task
from robustjax.data.tasks import TaskConfig, load_task
from robustjax.data.tokens import Tokenizer, train_byte_bpe
from robustjax.errors import UserError
from robustjax.evaluation import evaluate, records
from robustjax.models import registry, victim as victims
from robustjax.models.transformer import Definition
from robustjax.models.victim import Victim
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.runtime.progress import Progress
from robustjax.runtime.runlog import (
    check_writable,
    config_hash,
    read_json,
    versions,
    write_json,
    write_manifest,
)
from robustjax.runtime.stages import Stage
from robustjax.training.adversarial import AdversarialConfig, round_folder, train_adversarially
from robustjax.training.finetune import FinetuneConfig, finetune, load_trained

SCHEMA_VERSION = 1
"""Raised when the meaning of a hashed leaf changes."""


@dataclasses.dataclass(frozen=True)
class PointConfig:
    """How one scaling point is run.

    Attributes:
        finetune: clean training.
        advtrain: adversarial training by name of the run (usually the training attack).
        search: how evaluation attacks are cut into programs.
    """

    finetune: FinetuneConfig
    advtrain: dict[str, AdversarialConfig]
    search: SearchConfig = SearchConfig()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured.

    Attributes:
        attacks: evaluation attacks by name.
        every_round: names of attacks that are run after every round of the training attack of the
            same name; all attacks are run before hardening, and all after the last round.
        num_examples: correctly answered validation examples to attack.
        min_accuracy: least clean accuracy that makes robustness worth measuring; below it the
            study stops.
        seed: seed of the evaluation attacks.
    """

    attacks: dict[str, Attack]
    every_round: tuple[str, ...] = ("gcg",)
    num_examples: int = 64
    min_accuracy: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A miniature or a full scaling study.

    Attributes:
        task: the data.
        points: how each scaling point is run, by name, smallest first.
        evaluation: what is measured.
        seeds: seeds of training; each is a full column of the study.
        mesh: devices.
    """

    task: TaskConfig
    points: dict[str, PointConfig]
    evaluation: EvaluationConfig
    seeds: tuple[int, ...] = (0,)
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        if not self.points:
            raise UserError("points is empty; name at least one scaling point")
        for name in self.points:
            if registry.scaling_point(name).hub_name:
                raise UserError(
                    f"points: {name} needs its published weights, which a study cannot load yet; "
                    "use the nano-* ladder"
                )
        for name in self.evaluation.every_round:
            if name not in self.evaluation.attacks:
                raise UserError(f"evaluation.every_round: {name!r} is not in evaluation.attacks")


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """One stage: its place, what defines it, and what does it."""

    name: str
    stage: Stage
    leaves: dict[str, Any]
    run: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return Path(str(self.stage.folder))


def run_study(config: StudyConfig, workdir: str | Path) -> Path:
    """Runs what is not done yet.

    Args:
        config: the study.
        workdir: where everything goes; the same workdir continues an interrupted study.

    Returns:
        Path of the report.

    Raises:
        UserError: bad settings, data or workdir; a model that does not learn the task.
    """
    folder = Path(workdir)
    check_writable(folder)
    task = load_task(config.task)
    stages = _Planner(config, task, folder).plan()
    todo = [planned for planned in stages if not planned.stage.is_done()]
    report = stages[-1].folder / "index.html"
    if not todo:
        print(f"study: all {len(stages)} stages are done already; nothing to do")
        return report
    write_manifest(
        folder,
        config=dataclasses.asdict(config),
        config_hash=stages[-1].stage.config_hash,
        seeds={"evaluation": config.evaluation.seed}
        | {f"training_{i}": seed for i, seed in enumerate(config.seeds)},
    )
    with Progress(len(stages), "study", unit="stages", done=len(stages) - len(todo)) as progress:
        for planned in todo:
            progress.set(progress.done, planned.name)
            planned.stage.start()
            planned.run(planned.folder)
            planned.stage.finish()
            progress.advance()
    return report


class _Planner:
    """Lists the stages; a stage knows the ones it stands on by their hashes."""

    def __init__(self, config: StudyConfig, task: Task, workdir: Path):
        self._config, self._task, self._workdir = config, task, workdir
        self._mesh = make_mesh(config.mesh)
        self._rules = AxisRules()
        self._stages: list[PlannedStage] = []

    def plan(self) -> list[PlannedStage]:
        """All stages in the order in which they run."""
        tokenizer = self._add("tokenizer", {"vocab": registry.NANO_VOCAB}, self._train_tokenizer)
        for point, settings in self._config.points.items():
            for seed in self._config.seeds:
                self._add_point(point, settings, seed, tokenizer)
        hashes = [planned.stage.config_hash for planned in self._stages]
        self._add("report", {"stages": hashes}, self._report)
        return self._stages

    def _add(
        self,
        name: str,
        leaves: dict[str, Any],
        run: Callable[[Path], None],
        upstream: PlannedStage | None = None,
    ) -> PlannedStage:
        leaves = {
            "task": _task_leaves(self._config.task, self._task),
            "upstream": upstream.stage.config_hash if upstream else "",
            **leaves,
        }
        digest = config_hash(leaves, SCHEMA_VERSION)
        planned = PlannedStage(
            name, Stage(str(self._workdir / name), digest, leaves), leaves, run
        )
        self._stages.append(planned)
        return planned

    def _add_point(
        self, point: str, settings: PointConfig, seed: int, tokenizer: PlannedStage
    ) -> None:
        who = f"{point}-s{seed}"
        evaluation = self._config.evaluation
        trained = self._add(
            f"finetune/{who}",
            {
                "point": point,
                "seed": seed,
                "finetune": _without(settings.finetune, "checkpoint_every"),
            },
            lambda folder: self._finetune(folder, point, settings, seed),
            tokenizer,
        )
        for name in evaluation.attacks:
            self._add_attack(point, settings, seed, name, trained, "none", 0)
        for trained_on, advtrain in settings.advtrain.items():
            hardened = self._add(
                f"advtrain/{who}/{trained_on}",
                {"seed": seed, "advtrain": _adversarial_leaves(advtrain)},
                lambda folder, name=trained_on: self._advtrain(folder, point, settings, seed, name),
                trained,
            )
            last = advtrain.num_rounds
            for number in range(1, last + 1):
                for name in evaluation.attacks:
                    is_own = name == trained_on and name in evaluation.every_round
                    if number == last or is_own:
                        self._add_attack(
                            point, settings, seed, name, hardened, trained_on, number
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
    ) -> None:
        evaluation = self._config.evaluation
        self._add(
            f"attack/{point}-s{seed}/{trained_on}-r{number}/{attack}",
            {
                "attack": evaluate.describe(evaluation.attacks[attack]),
                "num_examples": evaluation.num_examples,
                "min_accuracy": evaluation.min_accuracy,
                "seed": evaluation.seed,
                "round": number,
                "search": dataclasses.asdict(settings.search),
            },
            lambda folder: self._attack(folder, point, settings, seed, attack, trained_on, number),
            upstream,
        )

    def _train_tokenizer(self, folder: Path) -> None:
        texts = [example.text for example in self._task.split("train")]
        train_byte_bpe(texts, registry.NANO_VOCAB).save(folder)

    def _fresh_victim(self, point: str, seed: int) -> Victim:
        """The scaling point with freshly drawn weights."""
        facts = registry.scaling_point(point)
        definition = Definition(
            facts.config, num_classes=self._task.num_classes, scanned=facts.scanned
        )
        return Victim(
            point,
            facts.family,
            definition,
            victims.init_params(definition, seed, self._mesh, self._rules),
            Tokenizer.load(self._workdir / "tokenizer"),
            self._mesh,
            self._rules,
        )

    def _finetune_folder(self, point: str, seed: int) -> Path:
        return self._workdir / "finetune" / f"{point}-s{seed}"

    def _finetune(self, folder: Path, point: str, settings: PointConfig, seed: int) -> None:
        _, summary = finetune(
            self._fresh_victim(point, seed),
            self._task,
            settings.finetune,
            seed=seed,
            folder=folder,
            label=f"finetune {point}",
        )
        self._write_summary(folder, point, seed, summary)

    def _trained(self, point: str, seed: int) -> Victim:
        """The fine-tuned victim, if it learned the task well enough to be worth attacking."""
        folder = self._finetune_folder(point, seed)
        reached = read_json(folder / "summary.json")["validation_accuracy"]
        wanted = self._config.evaluation.min_accuracy
        if reached < wanted:
            raise UserError(
                f"{point} reaches a clean accuracy of {reached:.3f} on {self._task.name}, below "
                f"evaluation.min_accuracy={wanted}; train longer (points.{point}.finetune) or "
                "lower the bar"
            )
        return load_trained(self._fresh_victim(point, seed), folder)

    def _advtrain(
        self, folder: Path, point: str, settings: PointConfig, seed: int, trained_on: str
    ) -> None:
        _, summary = train_adversarially(
            self._trained(point, seed),
            self._task,
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
    ) -> None:
        evaluation, attack = self._config.evaluation, self._config.evaluation.attacks[name]
        victim = self._trained(point, seed)
        defence_flops = 0
        if number:
            hardened = self._workdir / "advtrain" / f"{point}-s{seed}" / trained_on
            victim = load_trained(victim, round_folder(hardened, number))
            rounds = read_json(hardened / "summary.json")["rounds"]
            defence_flops = rounds[number - 1]["flops_total"]
        found, timing = evaluate.attack_examples(
            victim,
            self._task.split("validation"),
            self._task.chunk_kinds,
            attack,
            seed=evaluation.seed,
            config=settings.search,
            max_attacked=evaluation.num_examples,
            path=folder / "attack_records.jsonl",
            label=f"attack {point} {trained_on}-r{number} {name}",
        )
        trained = read_json(self._finetune_folder(point, seed) / "summary.json")
        summary = {
            "kind": "attack",
            "num_params": victim.num_params,
            "attack": name,
            "attack_config": evaluate.describe(attack),
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

    def _write_summary(
        self, folder: Path, point: str, seed: int, summary: dict[str, Any]
    ) -> None:
        digest = read_json(folder / "stage.json")["config_hash"]
        common = {
            "point": point,
            "model_family": registry.scaling_point(point).family,
            "task": self._task.name,
            "victim_seed": seed,
            "config_hash": digest,
            "versions": versions(),
        }
        write_json(folder / "summary.json", summary | common)

    def _report(self, folder: Path) -> None:
        write_report([self._workdir], folder)


def _task_leaves(config: TaskConfig, task: Task) -> dict[str, Any]:
    """The data set by content: sizes, seed and the hashes of files, wherever they lie."""
    return _without(config, "train_path", "validation_path") | {"source": task.source}


def _adversarial_leaves(config: AdversarialConfig) -> dict[str, Any]:
    return dataclasses.asdict(config) | {"attack": evaluate.describe(config.attack)}


def _without(config: Any, *names: str) -> dict[str, Any]:
    return {
        name: value for name, value in dataclasses.asdict(config).items() if name not in names
    }
