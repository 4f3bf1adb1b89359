"""What the stages of a study do in their folders, given the one config of the whole."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from robustjax.attacks.search import Attack
from robustjax.data.prompts import Task
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.evaluation.perplexity_filter import PerplexityFilter, prepare_filter
from robustjax.evaluation.transfer import Cell
from robustjax.given_model import GivenModel, read_past
from robustjax.models import registry
from robustjax.models.checksum import folder_sha256
from robustjax.models.classifier_head import as_classifier
from robustjax.models.fresh import fresh_victim
from robustjax.models.layers import Numerics
from robustjax.models.model_folder import load_model
from robustjax.models.transformer import Definition, Head, Remat
from robustjax.models.victim import Victim
from robustjax.runtime import distributed
from robustjax.runtime.mesh import AxisRules, make_mesh
from robustjax.runtime.runlog import read_json
from robustjax.settings import PointConfig, SamplerConfig, StudyConfig
from robustjax.stage_work import (
    FROM_SCRATCH,
    Identity,
    Past,
    attack_into,
    finetune_into,
    write_summary,
)
from robustjax.training.adversarial import AdversarialConfig, train_adversarially
from robustjax.training.finetune import FinetuneConfig
from robustjax.training.rounds import round_folder

_RULES = AxisRules()


@dataclasses.dataclass(frozen=True)
class FutureModel:
    """A model that a stage of the study will leave.

    Attributes:
        folder: where.
        definition: what it will be.
        tokenizer: what it will read with.
        made_by: the hash of that stage; empty of one that is only compared with others.
    """

    folder: Path
    definition: Definition
    tokenizer: Tokenizer
    made_by: str = ""

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.folder)

    def leaves(self, numerics: Numerics) -> dict[str, Any]:
        """What defines it."""
        return {"stage": self.made_by}

    def load(self, numerics: Numerics, mesh: Mesh, *, remat: Remat | None = None) -> Victim:
        """Loads it, once it is there."""
        return load_model(self.folder, mesh, _RULES, numerics, remat=remat)


Companion = FutureModel | GivenModel
"""A second model that attacks ask."""


@dataclasses.dataclass(frozen=True)
class StudyWork:
    """Everything that a stage needs to do its work.

    Attributes:
        config: the study.
        workdir: where its stages are.
        task: the data, without the examples that do not fit.
        tokenizer: of the ladder.
        companion: the second model of the attacks that ask one, or None.
        given: what the points start from that have weights already.
    """

    config: StudyConfig
    workdir: Path
    task: Task
    tokenizer: Tokenizer
    companion: Companion | None
    given: Mapping[str, GivenModel]

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return make_mesh(self.config.mesh)

    @functools.cached_property
    def _attack_mesh(self) -> Mesh:
        return make_mesh(self.config.attack_mesh or self.config.mesh)

    def save_tokenizer(self, folder: Path) -> None:
        """Leaves the ladder's tokenizer."""
        if distributed.is_primary():
            self.tokenizer.save(folder)

    def train_sampler(self, folder: Path, sampler: SamplerConfig) -> None:
        """Trains the language model that attacks ask."""
        settings = PointConfig(FinetuneConfig(), {})
        self._train_language_model(folder, sampler.point, settings, sampler.seed, sampler.train)

    def _identity(self, point: str, seed: int) -> Identity:
        return Identity(point, registry.scaling_point(point).family, self.task.name, seed)

    def _finetune_folder(self, point: str, seed: int) -> Path:
        return self.workdir / "finetune" / f"{point}-s{seed}"

    def _pretrain_folder(self, point: str, seed: int) -> Path:
        return self.workdir / "pretrain" / f"{point}-s{seed}"

    def _fresh(self, point: str, settings: PointConfig, seed: int, head: Head) -> Victim:
        return fresh_victim(
            point,
            self.tokenizer,
            num_classes=self.task.num_classes,
            seed=seed,
            mesh=self._mesh,
            rules=_RULES,
            numerics=settings.numerics,
            remat=settings.remat,
            head=head,
        )

    def pretrain(self, folder: Path, point: str, settings: PointConfig, seed: int) -> None:
        """Trains a point as a language model."""
        assert settings.pretrain is not None  # or there would be no such stage
        self._train_language_model(folder, point, settings, seed, settings.pretrain)

    def _train_language_model(
        self, folder: Path, point: str, settings: PointConfig, seed: int, config: FinetuneConfig
    ) -> None:
        victim = self._fresh(point, settings, seed, "lm")
        finetune_into(folder, victim, self._identity(point, seed), self.task, config)

    def finetune(self, folder: Path, point: str, settings: PointConfig, seed: int) -> None:
        """Trains a point as a classifier, from its pretraining if it has any."""
        pretrain_flops = None
        if point in self.given:
            base, started_from = self.given[point], self.given[point].weights
            pretrain_flops = read_past(base)[1].pretrain_flops
            victim = base.load(settings.numerics, self._mesh, remat=settings.remat, seed=seed)
        elif settings.pretrain is None:
            victim, started_from = self._fresh(point, settings, seed, "classifier"), FROM_SCRATCH
        else:
            folder_before = self._pretrain_folder(point, seed)
            base_model = self._load(folder_before, settings)
            victim = as_classifier(base_model, self.task.num_classes, seed)
            started_from = folder_sha256(folder_before / "model", is_ours=True)
            pretrain_flops = _summary(folder_before)["pretrain_flops"]
        finetune_into(
            folder,
            victim,
            self._identity(point, seed),
            self.task,
            settings.finetune,
            started_from=started_from,
            pretrain_flops=pretrain_flops,
        )

    def _trained_folder(self, point: str, seed: int) -> Path:
        """That of the fine-tuned victim, if it learned the task well enough to be attacked."""
        self.check_accuracy(point, seed)
        return self._finetune_folder(point, seed)

    def _load(self, folder: Path, settings: PointConfig) -> Victim:
        """What a run of training left in its folder, to be trained further."""
        return load_model(
            folder / "model", self._mesh, _RULES, settings.numerics, remat=settings.remat
        )

    def _load_attacked(self, folder: Path, settings: PointConfig) -> Victim:
        """The same, to be attacked as it is."""
        numerics = settings.attack_numerics or settings.numerics
        return load_model(
            folder / "model", self._attack_mesh, _RULES, numerics, remat=settings.remat
        )

    def _clean_summary(self, point: str, seed: int) -> dict[str, Any]:
        return _summary(self._finetune_folder(point, seed))

    def check_accuracy(self, point: str, seed: int) -> None:
        """Raises UserError if a trained classifier is not worth attacking."""
        summary = self._clean_summary(point, seed)
        reached, wanted = summary["validation_accuracy"], self.config.evaluation.min_accuracy
        if reached < wanted:
            raise UserError(
                f"{point} reaches a clean accuracy of {reached:.3f} on {self.task.name}, below "
                f"evaluation.min_accuracy={wanted}; train longer (points.{point}.finetune) in "
                "another --workdir, or lower the bar"
            )

    def advtrain(
        self, folder: Path, point: str, settings: PointConfig, seed: int, trained_on: str
    ) -> None:
        """Hardens a point's classifier."""
        _, summary = train_adversarially(
            self._load(self._trained_folder(point, seed), settings),
            self.task,
            settings.advtrain[trained_on],
            seed=seed,
            folder=folder,
            label=f"advtrain {point} {trained_on}",
            companion=self._load_companion(
                settings.advtrain[trained_on], settings.numerics, self._mesh, settings.remat
            ),
        )
        identity = self._identity(point, seed)
        origin = {"pretrain_flops": self._clean_summary(point, seed)["pretrain_flops"]}
        write_summary(folder, identity, summary | {"trained_on": trained_on} | origin)

    def attack(
        self,
        folder: Path,
        point: str,
        settings: PointConfig,
        seed: int,
        trained_on: str,
        cell: Cell,
    ) -> None:
        """Attacks a point's classifier, or what a hardening left of it."""
        number = cell.round
        if number == 0:
            left_in, defence_flops = self._trained_folder(point, seed), 0
        else:
            hardened = self.workdir / "advtrain" / f"{point}-s{seed}" / trained_on
            left_in = round_folder(hardened, number)
            rounds = _summary(hardened)["rounds"]
            defence_flops = rounds[number - 1]["flops_total"]
        pretrain_flops = self._clean_summary(point, seed)["pretrain_flops"]
        victim = self._load_attacked(left_in, settings)
        attack_into(
            folder,
            victim,
            self._identity(point, seed),
            Past(trained_on, number, defence_flops, pretrain_flops),
            self.task.split("validation"),
            self.task.chunk_kinds,
            cell.name,
            cell.attack,
            seed=self.config.evaluation.seed,
            search=settings.search,
            num_examples=cell.num_examples,
            label=f"attack {point} {trained_on}-r{number} {cell.label}",
            companion=self._load_companion(
                cell.attack, victim.definition.numerics, victim.mesh, settings.remat
            ),
            perplexity_filter=self._perplexity_filter,
        )

    @functools.cached_property
    def _perplexity_filter(self) -> PerplexityFilter | None:
        """The defence whose detection rates are reported, prepared on training texts."""
        config = self.config.evaluation.perplexity_filter
        if config is None or self.companion is None:
            return None
        model = self.companion.load(Numerics(), self._attack_mesh)
        texts = [example.text for example in self.task.split("train")]
        return prepare_filter(model, texts, config)

    def _load_companion(
        self,
        asking: Attack | AdversarialConfig,
        numerics: Numerics,
        mesh: Mesh,
        remat: Remat | None,
    ) -> Victim | None:
        """The second model, if one is asked, laid out as the first."""
        if self.companion is None or not asking.needs_companion:
            return None
        return self.companion.load(numerics, mesh, remat=remat)

    def report(self, folder: Path) -> None:
        """Writes the report on all that is done."""
        if distributed.is_primary():
            # SciPy and Matplotlib, which nothing before it needs, take over a second to import.
            from robustjax.analysis.report import write_report

            write_report([self.workdir], folder)


def _summary(folder: Path) -> dict[str, Any]:
    """What a stage that is done left."""
    path = folder / "summary.json"
    return distributed.from_primary(lambda: read_json(path), str(path))
