"""`load_victim`: from the name of a model to something that can be asked and attacked."""

import logging
from pathlib import Path

from jax.sharding import Mesh

from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.models.classifier_head import as_classifier
from robustjax.models.hf_load import load_hugging_face, read_hugging_face_config
from robustjax.models.layers import Numerics
from robustjax.models.model_folder import find_model, load_model
from robustjax.models.registry import POINTS, layer_loop
from robustjax.models.transformer import Definition, Head, Remat
from robustjax.models.victim import Victim
from robustjax.runtime import mirror
from robustjax.runtime.files import is_remote
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh

_log = logging.getLogger(__name__)
_FILES = ["*.json", "*.safetensors", "merges.txt", "tokenizer.model", "*.jinja"]
_TORCH_FILES = ["pytorch_model*.bin"]


def load_victim(
    path_or_point: str | Path,
    *,
    num_classes: int = 2,
    revision: str | None = None,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
    numerics: Numerics | None = None,
    seed: int = 0,
    batch_size: int = 32,
    head: Head = "classifier",
    strict: bool = False,
    remat: Remat | None = None,
) -> Victim:
    """Loads a model with its tokenizer.

    Args:
        path_or_point: a folder, local or `gs://` (Hugging Face's, or one of ours: a training
            stage's, or what `robustjax convert` made), a scaling point (`pythia-70m`), or a name on
            the Hugging Face hub (`EleutherAI/pythia-70m`, also with `@revision`).
        num_classes: classes of the classifier.
        revision: branch, tag or commit on the hub.
        mesh: the devices; the first one by default.
        rules: how named axes are split over the mesh.
        numerics: number formats.
        seed: of the classifier head, where the model has none yet; it is warned about.
        batch_size: texts that `Victim.logits` scores at once.
        head: `"lm"` keeps the language-model head.
        strict: refuses a model without that head.
        remat: what training computes again in the backward pass; None takes what suits the size of
            the model (`registry.layer_loop`).

    Raises:
        UserError: there is no such model, it cannot be reached, or its files are not what they
            should be.
    """
    if head == "classifier" and num_classes < 2:
        raise UserError(f"num_classes is {num_classes}; a classifier has at least 2")
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    rules = AxisRules() if rules is None else rules
    numerics = Numerics() if numerics is None else numerics
    path_or_point = mirror.brought(path_or_point) if is_remote(path_or_point) else path_or_point
    name, point = str(path_or_point), POINTS.get(str(path_or_point))
    ours = find_model(Path(path_or_point).expanduser())
    if ours is not None and point is None:
        victim = load_model(ours, mesh, rules, numerics, batch_size, remat)
        if victim.definition.head == "lm" and head == "classifier" and not strict:
            _log.warning(
                "%s holds no classifier head: it is drawn afresh and has to be trained", ours
            )
            return as_classifier(victim, num_classes, seed)
        _check_head(ours, victim.definition, head, num_classes)
        return victim
    folder = find_folder(name, revision)
    config = read_hugging_face_config(folder)
    definition = Definition(
        config,
        head=head,
        num_classes=num_classes,
        numerics=numerics,
        **layer_loop(config, remat),
    )
    tokenizer = Tokenizer.load(folder)
    params = load_hugging_face(folder, definition, mesh, rules, seed=seed, strict=strict)
    family = definition.port.model_types[0] if point is None else point.family
    return Victim(name, family, definition, params, tokenizer, mesh, rules, batch_size)


def find_folder(
    path_or_point: str, revision: str | None = None, *, torch_files: bool = False
) -> Path:
    """The local folder with a model's files, which are downloaded if they are on the hub.

    Args:
        path_or_point: as for `load_victim`.
        revision: branch, tag or commit on the hub.
        torch_files: downloads weights in torch's own format too.

    Raises:
        UserError: there is no such model, or it cannot be reached.
    """
    point = POINTS.get(path_or_point)
    folder = Path(path_or_point).expanduser()
    if point is None and folder.is_dir():
        return folder
    if point is not None and not point.hub_name:
        raise UserError(
            f"scaling point {point.name} has no published weights; train it with "
            "`robustjax finetune` and give the folder"
        )
    name, _, suffix = (path_or_point if point is None else point.hub_name).partition("@")
    return _download(name, revision or suffix or None, _FILES + _TORCH_FILES * torch_files)


def _check_head(folder: Path, definition: Definition, head: Head, num_classes: int) -> None:
    if definition.head != head:
        raise UserError(f"{folder} has the head {definition.head!r}; give head={definition.head!r}")
    if head == "classifier" and definition.num_classes != num_classes:
        raise UserError(
            f"{folder} has {definition.num_classes} classes, not {num_classes}; give "
            f"num_classes={definition.num_classes}"
        )


def _download(name: str, revision: str | None, files: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files)
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        wanted = name if revision is None else f"{name}@{revision}"
        raise UserError(
            f"model {wanted!r} is no folder and no scaling point, and cannot be downloaded from "
            f"the Hugging Face hub ({type(error).__name__}); give a folder, or a name that can be "
            "reached"
        ) from error
