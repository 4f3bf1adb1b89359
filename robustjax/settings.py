"""The settings of a study, and how they are built from a config (nested mappings).

Every field is checked by name, type and value before anything runs; a mistake is one line that
names the field as it is written on the command line.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from robustjax.attacks.search import ATTACKS, Attack, SearchConfig, why_companion
from robustjax.data.tasks import TaskConfig
from robustjax.errors import UserError
from robustjax.evaluation import evaluate
from robustjax.evaluation.perplexity_filter import PerplexityFilterConfig
from robustjax.evaluation.records import UNDEFENDED
from robustjax.evaluation.transfer import TransferConfig
from robustjax.models import registry
from robustjax.models.layers import Numerics
from robustjax.models.transformer import Remat
from robustjax.runtime.mesh import MeshConfig
from robustjax.training.adversarial import AdversarialConfig
from robustjax.training.finetune import FinetuneConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class PointConfig:
    """How one scaling point is run.

    Attributes:
        finetune: clean training.
        advtrain: adversarial training by name of the run (usually the training attack).
        search: how evaluation attacks are cut into programs.
        numerics: number formats.
        attack_numerics: those of a model that evaluation attacks; None takes `numerics`.
        remat: what training computes again in the backward pass; None takes what suits the model.
        pretrain: training as a language model on the task's texts, which `finetune` then starts
            from; None starts it from fresh weights, or from those that `path` names.
        path: what `finetune` starts from: a name on the Hugging Face hub or a folder; empty takes
            the published weights of a point that has any.
    """

    finetune: FinetuneConfig
    advtrain: dict[str, AdversarialConfig]
    search: SearchConfig = SearchConfig()
    numerics: Numerics = Numerics()
    attack_numerics: Numerics | None = None
    remat: Remat | None = None
    pretrain: FinetuneConfig | None = None
    path: str = ""

    def __post_init__(self) -> None:
        check_names("advtrain", self.advtrain)
        for name, run in self.advtrain.items():
            check_names(f"advtrain.{name}.attacks", run.attacks)
        for field, part, wanted in (
            ("finetune", self.finetune, "classifier"),
            ("pretrain", self.pretrain, "lm"),
        ):
            if part is not None and part.objective != wanted:
                raise UserError(
                    f"{field}.objective={part.objective!r}: in a study, language models are "
                    f"trained by pretrain and classifiers by finetune; set it to {wanted!r}"
                )

    def check_edges_reach(self, name: str, context: int) -> None:
        """Raises UserError unless every prompt that fits the context fits some bucket."""
        edges = {"finetune.train": self.finetune.train.edges, "search": self.search.edges}
        if self.pretrain is not None:
            edges["pretrain.train"] = self.pretrain.train.edges
        for run, settings in self.advtrain.items():
            edges[f"advtrain.{run}.train"] = settings.train.edges
            edges[f"advtrain.{run}.search"] = settings.search.edges
        check_edges_reach({f"points.{name}.{key}": one for key, one in edges.items()}, context)


def check_edges_reach(edges: Mapping[str, tuple[int, ...]], context: int) -> None:
    """Checks that every prompt that fits the context fits some bucket.

    Args:
        edges: bucket widths, by the settings that they are a field of.
        context: longest prompt of the model, in tokens.

    Raises:
        UserError: the widths of a field end below the context.
    """
    for name, widths in edges.items():
        if widths[-1] < context:
            raise UserError(
                f"{name}.edges={widths} end below the model's context of {context} tokens; add a "
                "wider bucket"
            )


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """A language model, trained on the task's texts, that attacks take tokens from.

    Attributes:
        point: its scaling point.
        train: how it is trained.
        seed: of its weights and the order of its batches.
    """

    point: str
    train: FinetuneConfig
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        if registry.scaling_point(self.point).hub_name:
            raise UserError(
                f"point={self.point!r} has published weights: convert them, and name the folder in "
                "evaluation.companion"
            )
        if self.train.objective != "lm":
            raise UserError(
                f"train.objective={self.train.objective!r}: a sampler is a language model; set it "
                "to 'lm'"
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured.

    Attributes:
        attacks: evaluation attacks by name.
        transfer: which of them meet which victims, by names that only people read; by default all
            attacks are run before hardening and after its last round.
        num_examples: correctly answered validation examples to attack.
        min_accuracy: least clean accuracy that makes robustness worth measuring; below it the
            study stops.
        seed: seed of the evaluation attacks.
        companion: folder with a model of ours, or workdir of a training, that attacks ask beside
            the victim: BEAST a language model, probe sampling a classifier.
        sampler: a language model that the study trains first, for attacks to ask.
        perplexity_filter: a defence whose detection rates are reported of every attack; its
            language model is the companion or the sampler.
    """

    attacks: dict[str, Attack]
    transfer: dict[str, TransferConfig] = dataclasses.field(
        default_factory=lambda: {"before_and_after": TransferConfig()}
    )
    num_examples: int = 64
    min_accuracy: float = 0.0
    seed: int = 0
    companion: str = ""
    sampler: SamplerConfig | None = None
    perplexity_filter: PerplexityFilterConfig | None = None

    @property
    def has_companion(self) -> bool:
        """Whether there is a model for attacks to ask beside the victim."""
        return bool(self.companion) or self.sampler is not None

    def __post_init__(self) -> None:
        if not self.attacks:
            raise UserError("attacks is empty; name at least one attack")
        check_names("attacks", self.attacks)
        for name, attack in self.attacks.items():
            reason = why_companion(attack, "classifier")
            if reason and not self.has_companion:
                raise UserError(
                    f"attacks.{name}: {reason}; set evaluation.companion to its folder, or let "
                    "evaluation.sampler train one"
                )
        if self.companion and self.sampler is not None:
            raise UserError(
                f"companion={self.companion!r} and sampler={self.sampler.point!r}: attacks ask one "
                "model; leave one of the two out"
            )
        if self.perplexity_filter is not None and not self.has_companion:
            raise UserError(
                "perplexity_filter asks a language model; set evaluation.companion to its folder, "
                "or let evaluation.sampler train one"
            )
        if self.num_examples < 1:
            raise UserError(f"num_examples={self.num_examples} must be at least 1")
        for name, product in self.transfer.items():
            for wanted in product.attacks:
                if wanted not in self.attacks:
                    raise UserError(f"transfer.{name}.attacks: {wanted!r} is not in attacks")
            if product.num_examples > self.num_examples:
                raise UserError(
                    f"transfer.{name}.num_examples={product.num_examples} is more than "
                    f"num_examples={self.num_examples}; raise that"
                )
        if not 0 <= self.min_accuracy <= 1:
            raise UserError(f"min_accuracy={self.min_accuracy} is not a share; use 0 to 1")
        check_seed("seed", self.seed)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A miniature or a full scaling study.

    Attributes:
        task: the data.
        points: how each scaling point is run, by name; smaller ones are run first.
        evaluation: what is measured.
        seeds: seeds of training; each is a full column of the study.
        mesh: devices.
        attack_mesh: the same devices, as evaluation attacks use them; None takes `mesh`.
        workers: processes that run scaling points side by side, each on its share of the cores;
            for models so small that one of them cannot keep a CPU busy.
    """

    task: TaskConfig
    points: dict[str, PointConfig]
    evaluation: EvaluationConfig
    seeds: tuple[int, ...] = (0,)
    mesh: MeshConfig = MeshConfig()
    attack_mesh: MeshConfig | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"workers={self.workers} must be at least 1")
        for name, mesh in (("mesh", self.mesh), ("attack_mesh", self.attack_mesh)):
            if self.workers > 1 and mesh is not None and mesh.sizes != (1, 1, 1):
                raise UserError(
                    f"workers={self.workers}: each has one device, but {name}={mesh.sizes}; "
                    "set workers=1, or every axis of the mesh to 1"
                )
        if not self.points:
            raise UserError("points is empty; name at least one scaling point")
        self._check_origins()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds={self.seeds}: give at least one, and none twice")
        for seed in self.seeds:
            check_seed("seeds", seed)
        self._check_transfer()
        for name, point in self.points.items():
            for run, training in point.advtrain.items():
                if training.needs_companion and not self.evaluation.has_companion:
                    raise UserError(
                        f"points.{name}.advtrain.{run}: a training attack asks a second model; set "
                        "evaluation.companion to its folder, or let evaluation.sampler train one"
                    )
            point.check_edges_reach(name, registry.scaling_point(name).config.context)

    def starts_from_weights(self, point: str) -> bool:
        """Whether a point's clean training starts from weights that are there already."""
        return bool(self.points[point].path or registry.scaling_point(point).hub_name)

    def _check_origins(self) -> None:
        """All points start from weights, or none does: a study has one tokenizer."""
        given = [name for name in self.points if self.starts_from_weights(name)]
        fresh = [name for name in self.points if name not in given]
        if given and fresh:
            raise UserError(
                f"points: {fresh[0]} is trained from scratch, with a tokenizer of the task's, and "
                f"{given[0]} has weights, with another; make two studies of them"
            )
        for name in given:
            if self.points[name].pretrain is not None:
                raise UserError(
                    f"points.{name}.pretrain: the point starts from weights that were trained "
                    "already; set it to None"
                )
        if given and self.evaluation.sampler is not None:
            raise UserError(
                f"evaluation.sampler has the tokenizer of the task, and {given[0]} another; name a "
                "model of its family in evaluation.companion"
            )

    def _check_transfer(self) -> None:
        """Everything that the transfer matrix names is there."""
        trainings = {UNDEFENDED} | {run for one in self.points.values() for run in one.advtrain}
        for name, product in self.evaluation.transfer.items():
            for field, known in (
                ("trained_on", trainings),
                ("points", self.points),
                ("seeds", self.seeds),
            ):
                for value in getattr(product, field):
                    if value not in known:
                        raise UserError(
                            f"evaluation.transfer.{name}.{field}: {value!r} is not in this study; "
                            f"known: {', '.join(map(str, sorted(known)))}"
                        )


def build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Builds a dataclass from a mapping of its fields, and nested ones from nested mappings.

    Args:
        cls: the dataclass.
        values: its fields; those left out keep their defaults.
        path: where ``values`` stands in the config, for messages.

    Raises:
        UserError: an unknown field, a missing one, a value of another type, or one that the
            dataclass refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UserError(f"{path}.{name}: no such field{_suggestion(name, fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise UserError(f"{path}.{name} is missing; set it")
    given = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def build_attack(values: Mapping[str, Any], path: str) -> Attack:
    """Builds the settings of the attack that ``values["name"]`` names."""
    rest = dict(values)
    name = rest.pop("name", None)
    if not isinstance(name, str) or name not in ATTACKS:
        raise UserError(f"{path}.name={name!r} is no attack; known: {', '.join(ATTACKS)}")
    return build(ATTACKS[name], rest, path)


def describe(value: Any) -> Any:
    """Turns settings back into the nested mappings that `build` takes, defaults filled in."""
    if isinstance(value, Attack):
        return evaluate.describe(value)
    if dataclasses.is_dataclass(value):
        return {
            field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: describe(item) for key, item in value.items()}
    return value


def _convert(hint: Any, value: Any, path: str) -> Any:
    if hint == Attack:
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={value!r} is no attack; give its name and settings")
        return build_attack(value, path)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, path)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [one for one in arguments if one is not type(None)]
        return _convert(hint, value, path)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{path}={value!r} is unknown; use {', '.join(map(str, arguments))}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(
            _convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = origin or hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise UserError(
            f"{path}={value!r} is {type(value).__name__}, "
            f"expected {getattr(wanted, '__name__', wanted)}"
        )
    return value


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def check_names(field: str, names: Iterable[str]) -> None:
    """Raises UserError for a name that cannot be a folder's, or that means "not hardened"."""
    for name in names:
        if name == UNDEFENDED or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
            raise UserError(
                f"{field}: {name!r} is no name; use letters, digits, _, - and ., a letter first"
            )


def check_seed(field: str, seed: int) -> None:
    """Raises UserError for a seed that the random generators do not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"{field}: {seed} is no seed; use 0 to {2**32 - 1}")
