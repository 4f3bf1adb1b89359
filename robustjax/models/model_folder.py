"""Folders of our own with a model: weights as Orbax arrays, what they are weights of, tokenizer.

A fine-tuning run leaves one, each round of adversarial training does, and `robustjax convert` makes
one of a Hugging Face folder. It stands by itself: whoever has the folder has the victim.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.models.architectures import port_of_model_type
from robustjax.models.layers import Numerics
from robustjax.models.transformer import Definition, Params, Remat
from robustjax.models.victim import Victim, param_shardings
from robustjax.runtime import distributed
from robustjax.runtime.checkpoint import iterate_params, load_metadata, load_params, save_params
from robustjax.runtime.mesh import AxisRules


def save_model(folder: Path, victim: Victim) -> None:
    """Saves weights, in their own type, and tokenizer; replaces a model in that folder."""
    if distributed.is_primary():
        victim.tokenizer.save(folder)  # before the weights, whose last file says that all is there
    definition = victim.definition
    metadata = {
        "name": victim.name,
        "family": victim.family,
        "head": definition.head,
        "num_classes": definition.num_classes,
        "scanned": definition.scanned,
        "remat": definition.remat,
        "param_dtype": definition.numerics.param_dtype,
        "config": definition.port.config_to_hugging_face(definition.config),
    }
    save_params(folder, victim.params, metadata)


def find_model(path: Path) -> Path | None:
    """The folder of our own that a path is or, being a training stage's, holds; else None.

    Of an adversarial training that is done it is the last round's.
    """
    folders = [path, path / "model"]
    if (path / "summary.json").is_file():
        folders += sorted((path / "rounds").glob("*/model"))[-1:]
    for folder in folders:
        if (folder / "metadata.json").is_file() and not (folder / "config.json").is_file():
            return folder
    return None


def load_model(
    folder: Path,
    mesh: Mesh,
    rules: AxisRules,
    numerics: Numerics | None = None,
    batch_size: int = 32,
    remat: Remat | None = None,
) -> Victim:
    """Loads what `save_model` saved.

    Args:
        folder: where from.
        mesh: the devices; they need not be those it was saved from.
        rules: how named axes are split over the mesh.
        numerics: number formats; weights saved in another type are converted. None keeps that type.
        batch_size: texts that `Victim.logits` scores at once.
        remat: what training computes again in the backward pass; None keeps what was saved.

    Raises:
        UserError: the folder is damaged, or holds something else.
    """
    saved = load_metadata(folder)
    stored = stored_definition(folder, saved)
    numerics = stored.numerics if numerics is None else numerics
    params, _ = load_params(folder, _abstract_on(mesh, rules, stored), numerics.param_dtype)
    return Victim(
        saved["name"],
        saved["family"],
        dataclasses.replace(stored, numerics=numerics, remat=remat or stored.remat),
        params,
        Tokenizer.load(folder),
        mesh,
        rules,
        batch_size,
    )


def iterate_model(folder: Path, mesh: Mesh, rules: AxisRules) -> Iterator[tuple[str, jax.Array]]:
    """The weights in a folder one after the other, by their paths (`blocks.00.query.kernel`)."""
    definition = stored_definition(folder, load_metadata(folder))
    return iterate_params(folder, like=_abstract_on(mesh, rules, definition))


def _abstract_on(mesh: Mesh, rules: AxisRules, definition: Definition) -> Params:
    """Shapes, types and shardings of the weights."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        transformer.abstract_params(definition),
        param_shardings(definition, mesh, rules),
    )


def stored_definition(folder: Path, saved: dict[str, Any]) -> Definition:
    """What the weights in a folder are weights of, in the type they are saved in."""
    if "config" not in saved:
        raise UserError(f"{folder} holds arrays that are no model; give a model's folder")
    port = port_of_model_type(saved["config"]["model_type"])
    return Definition(
        port.config_from_hugging_face(saved["config"]),
        head=saved["head"],
        num_classes=saved["num_classes"],
        numerics=Numerics(param_dtype=saved["param_dtype"]),
        scanned=saved["scanned"],
        remat=saved["remat"],
    )
