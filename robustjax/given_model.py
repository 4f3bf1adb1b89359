"""The model that a command is given: where it lies, who it is, and whether it fits.

Everything here is known before its weights are loaded, so a mistake costs no time.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.evaluation import pretraining
from robustjax.models import registry
from robustjax.models.checksum import folder_sha256
from robustjax.models.hf_load import classes_of_head, has_lm_head, read_hugging_face_config
from robustjax.models.layers import Numerics
from robustjax.models.loading import find_folder, load_victim
from robustjax.models.model_folder import find_model, stored_definition
from robustjax.models.transformer import Definition, Head, Remat
from robustjax.models.victim import Victim
from robustjax.runtime import mirror
from robustjax.runtime.checkpoint import load_metadata
from robustjax.runtime.files import is_remote
from robustjax.runtime.runlog import read_json
from robustjax.stage_work import Past


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which model.

    Attributes:
        point: its scaling point; may be empty if there is a path.
        path: a scaling point, a name on the Hugging Face hub, a Hugging Face folder, a folder of
            ours or the workdir of a training; empty takes the point's published weights.
        numerics: number formats.
    """

    point: str = ""
    path: str = ""
    numerics: Numerics = Numerics()

    def __post_init__(self) -> None:
        if self.point:
            registry.scaling_point(self.point)

    @property
    def is_named(self) -> bool:
        """Whether a point or a path says which model it is."""
        return bool(self.point or self.path)

    def check_named(self) -> None:
        """Raises UserError if neither a point nor a path says which model it is."""
        if not self.is_named:
            raise UserError(
                "config.model.point and config.model.path are both empty; name a scaling point "
                "(--config=FILE.py:point=NAME), or give --config.model.path"
            )

    @property
    def is_from_scratch(self) -> bool:
        """Whether there are no weights to start from."""
        return not self.path and not registry.scaling_point(self.point).hub_name


@dataclasses.dataclass(frozen=True)
class GivenModel:
    """A model on the disk.

    Attributes:
        folder: where it is.
        is_ours: whether its weights are Orbax arrays of ours, or Hugging Face's files.
        definition: what it is loaded as, but for its numerics.
        point: its scaling point, or another name for reports.
        family: its family.
    """

    folder: Path
    is_ours: bool
    definition: Definition
    point: str
    family: str

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.point

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """What it reads with."""
        return Tokenizer.load(self.folder)

    @functools.cached_property
    def weights(self) -> str:
        """The checksum of its weights."""
        return folder_sha256(self.folder, is_ours=self.is_ours)

    def leaves(self, numerics: Numerics) -> dict[str, Any]:
        """What defines it, wherever it lies."""
        return {
            "point": self.point,
            "family": self.family,
            "weights": self.weights,
            "tokenizer": self.tokenizer.fingerprint,
            "head": self.definition.head,
            "num_classes": self.definition.num_classes,
            "numerics": dataclasses.asdict(numerics),
        }

    def load(
        self, numerics: Numerics, mesh: Mesh, *, remat: Remat | None = None, seed: int = 0
    ) -> Victim:
        """Loads it; the seed is of a classifier head that it does not have yet."""
        victim = load_victim(
            self.folder,
            num_classes=self.definition.num_classes,
            head=self.definition.head,
            mesh=mesh,
            numerics=numerics,
            remat=remat,
            seed=seed,
        )
        return dataclasses.replace(victim, name=self.point, family=self.family)


def find(
    config: ModelConfig,
    head: Head,
    num_classes: int,
    no_head_remedy: str = "",
    *,
    field: str = "config.model",
) -> GivenModel:
    """Finds a model, downloads it if it is on the hub, and checks that it fits.

    Args:
        config: which.
        head: what it has to put out.
        num_classes: classes of the task.
        no_head_remedy: what to do about a model without a classifier head; empty takes it as it is.
        field: what messages call ``config``.

    Raises:
        UserError: there is no such model, it has another head or number of classes, or is not of
            the scaling point that is named.
    """
    if config.is_from_scratch:
        raise UserError(
            f"{field}.path is empty, and scaling point {config.point} has no published weights; "
            f"train it (robustjax finetune) and give that --workdir as --{field}.path"
        )
    source = config.path or config.point
    source = str(mirror.brought(source)) if is_remote(source) else source
    ours = None if source in registry.POINTS else find_model(Path(source).expanduser().resolve())
    if ours is not None:
        saved = load_metadata(ours)
        definition = stored_definition(ours, saved)
        _check_head(definition, source, head, num_classes, field)
        given = GivenModel(ours, True, definition, Path(saved["name"]).name, saved["family"])
    else:
        folder = _find_hugging_face(source, field)
        shape = read_hugging_face_config(folder)
        loop = registry.layer_loop(shape)
        definition = Definition(shape, head=head, num_classes=num_classes, **loop)
        _check_hugging_face_head(folder, definition, num_classes, no_head_remedy, field)
        known = _point_of(source)
        name = known.name if known else Path(source).expanduser().resolve().name
        family = known.family if known else definition.port.model_types[0]
        given = GivenModel(folder, False, definition, name, family)
    return _named(given, config.point, source, field)


def read_past(given: GivenModel) -> tuple[int, Past]:
    """The seed and the history of a model, as far as the training that left it tells them."""
    run, number = _run_of(given)
    path = run / "summary.json"
    summary = read_json(path) if given.is_ours and path.is_file() else {}
    kind = summary.get("kind")
    if kind in ("finetune", "pretrain") and not number:
        return summary["victim_seed"], Past(pretrain_flops=summary["pretrain_flops"])
    if kind == "advtrain" and number:
        spent = summary["rounds"][number - 1]["flops_total"]
        past = Past(summary["trained_on"], number, spent, summary["pretrain_flops"])
        return summary["victim_seed"], past
    return 0, Past(pretrain_flops=pretraining.pretrain_flops(given.point))


def read_instruction(given: GivenModel) -> str | None:
    """The task's instruction in the training that left a model; None if unknown."""
    path = _run_of(given)[0] / "stage.json"
    if not (given.is_ours and path.is_file()):
        return None
    return read_json(path)["config"].get("task", {}).get("instruction")


def _run_of(given: GivenModel) -> tuple[Path, int]:
    """The folder of the training that left a model, and the round; 0 if there were no rounds."""
    folder = given.folder.parent
    if folder.parent.name == "rounds" and folder.name.isdecimal():
        return folder.parents[1], int(folder.name)
    return folder, 0


def _find_hugging_face(source: str, field: str) -> Path:
    try:
        return find_folder(source)
    except UserError as error:
        raise UserError(f"{field}.path: {error}") from error


def _point_of(source: str) -> registry.ScalingPoint | None:
    """The point that a source names, by its own name or by that of its published weights."""
    name = source.partition("@")[0]
    matching = (p for p in registry.POINTS.values() if name in (p.name, p.hub_name))
    return next(matching, None)


def _named(given: GivenModel, point: str, source: str, field: str) -> GivenModel:
    """The model with the name and family of the scaling point that it is said to be."""
    if not point:
        return given
    known, there = registry.scaling_point(point), given.definition.config
    if (there.layers, there.width) != (known.config.layers, known.config.width):
        raise UserError(
            f"{field}.point={point} has {known.config.layers} layers of width "
            f"{known.config.width}, the model in {source} has {there.layers} of width "
            f"{there.width}; leave the point out or name the right one"
        )
    return dataclasses.replace(given, point=point, family=known.family)


def _check_hugging_face_head(
    folder: Path, definition: Definition, num_classes: int, remedy: str, field: str
) -> None:
    """Raises UserError if a folder's head is another task's, or missing and there is a remedy."""
    if definition.head == "lm":
        if not has_lm_head(folder, definition):
            raise UserError(
                f"{field}.head=lm: {folder} has no language-model head; set {field}.head=classifier"
                if field == "config.model"
                else f"{field}.path: {folder} has no language-model head; give a language model"
            )
        return
    classes = classes_of_head(folder, definition)
    if classes is None and remedy:
        raise UserError(
            f"{field}.path: {folder} has no classifier head, and a fresh one answers at "
            f"random; {remedy}"
        )
    _check_classes(folder, num_classes if classes is None else classes, num_classes, field)


def _check_head(
    definition: Definition, source: str, head: Head, num_classes: int, field: str
) -> None:
    """Raises UserError if a folder of ours has another head than is wanted."""
    if definition.head != head:
        raise UserError(
            f"{field}.head={head}: {source} has the head {definition.head!r}; set "
            f"{field}.head={definition.head}"
            if field == "config.model"
            else f"{field}.path: {source} has the head {definition.head!r}; give a model with the "
            f"head {head!r}"
        )
    if head == "classifier":
        _check_classes(source, definition.num_classes, num_classes, field)


def _check_classes(source: str | Path, there: int, wanted: int, field: str) -> None:
    if there != wanted:
        raise UserError(
            f"{field}.path: {source} tells {there} classes apart, config.task has {wanted}; "
            "give the task that it was trained on"
        )
