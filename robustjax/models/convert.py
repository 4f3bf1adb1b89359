"""Models from Hugging Face's folders to ours and back, with proof that nothing was lost.

Before anything is written, the weights to be written get a checksum; afterwards it is computed
again from what stands on the disk. It covers names (Hugging Face's), types, shapes and bits, so it
is the same for a model in either format, and `conversion.json` in the target keeps it.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError
from robustjax.models import torch_bin
from robustjax.models.architectures import port_of
from robustjax.models.checksum import weights_sha256
from robustjax.models.hf_load import (
    find_tensors,
    load_hugging_face,
    name_tensors,
    read_hugging_face_config,
)
from robustjax.models.hf_names import Slot, head_name, leaf_at, slots
from robustjax.models.hf_save import DEFAULT_SHARD_BYTES, save_hugging_face
from robustjax.models.layers import Numerics
from robustjax.models.loading import find_folder
from robustjax.models.model_folder import find_model, iterate_model, load_model, save_model
from robustjax.models.registry import POINTS, layer_loop
from robustjax.models.transformer import Definition, Head
from robustjax.models.victim import Victim
from robustjax.runtime.files import check_writable, read_json, write_json
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.runtime.progress import Progress

_RECORD, _FROM_TORCH = "conversion.json", "from_torch"
_TYPES = {"BF16": "bfloat16", "F16": "float16"}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    num_classes: int = 0,
    seed: int = 0,
    allow_torch_bin: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Path:
    """Converts a model: a folder of ours to Hugging Face's format, anything else to ours.

    Run again after an interruption it goes on; run again after the end it only checks.

    Args:
        source: a folder of ours, a Hugging Face folder, a scaling point, or a name on the hub.
        target: a new folder, or one that the same conversion has begun.
        num_classes: classes of the classifier to make of a base model; 0 keeps the head it has.
        seed: of that classifier's head.
        allow_torch_bin: reads weights in torch's own format, where there are no safetensors.
        max_shard_bytes: no safetensors file gets larger, unless one tensor is.

    Returns:
        The target.

    Raises:
        UserError: the source is no model or damaged, the target holds something else, or what was
            written is not what was read.
    """
    source, target = str(source), Path(target).expanduser()
    ours = find_model(Path(source).expanduser())
    _check_target(target)
    if ours is not None:
        if num_classes:
            raise UserError(f"num_classes={num_classes}: {ours} has a head already; leave it out")
        check_writable(target, "to")
        _to_hugging_face(ours, target, max_shard_bytes)
    else:
        _to_ours(source, target, num_classes, seed, allow_torch_bin)
    return target


def _to_hugging_face(folder: Path, target: Path, max_shard_bytes: int) -> None:
    victim = load_model(folder, _one_device(), AxisRules())
    places = slots(victim.definition)
    with Progress(3 * len(places), "convert", unit="tensors") as progress:
        progress.set(0, "checksum of what is there")
        checksum = weights_sha256(_each(_tensors_of(victim), places, progress))
        if _begin(target, checksum):
            progress.set(len(places), "writing")
            save_hugging_face(
                target,
                victim.definition,
                victim.params,
                victim.tokenizer,
                max_shard_bytes=max_shard_bytes,
                tick=progress.advance,
            )
        progress.set(2 * len(places), "checksum of what was written")
        found = find_tensors(target)
        written = weights_sha256(_each(lambda name: found[name].read(), places, progress))
    _finish(target, str(folder), checksum, written)


def _to_ours(source: str, target: Path, num_classes: int, seed: int, allow_torch_bin: bool) -> None:
    folder = find_folder(source, torch_files=allow_torch_bin)
    read_hugging_face_config(folder)  # before the target is made
    check_writable(target, "to")
    weights = folder
    if allow_torch_bin and torch_bin.bin_files(folder) and not any(folder.glob("*.safetensors")):
        weights = target / _FROM_TORCH
        _run_torch_bin(folder, weights)
    definition = _definition(folder, weights, num_classes)
    places = slots(definition)
    with Progress(3 * len(places), "convert", unit="tensors") as progress:
        # In a function of its own, so that the model is let go before it is read again.
        checksum = _write_ours(source, folder, weights, target, definition, seed, progress)
        progress.set(2 * len(places), "checksum of what was written")
        written = weights_sha256(_each_of_ours(target, places, progress))
    _finish(target, source, checksum, written)
    shutil.rmtree(target / _FROM_TORCH, ignore_errors=True)


def _write_ours(
    source: str,
    folder: Path,
    weights: Path,
    target: Path,
    definition: Definition,
    seed: int,
    progress: Progress,
) -> str:
    """Loads and saves; returns the checksum of what the files hold, not of what was made of it."""
    mesh, rules, places = _one_device(), AxisRules(), slots(definition)
    tokenizer = Tokenizer.load(folder)
    progress.set(0, "loading")
    params = load_hugging_face(weights, definition, mesh, rules, seed=seed, tick=progress.advance)
    point = POINTS.get(source)
    family = definition.port.model_types[0] if point is None else point.family
    victim = Victim(source, family, definition, params, tokenizer, mesh, rules)
    found = name_tensors(definition, find_tensors(weights))
    of_victim = _tensors_of(victim)  # has the head that a base model lacks

    def read(name: str) -> np.ndarray:
        if name not in found:
            return of_victim(name)
        return found[name].read().astype(definition.numerics.param_dtype, copy=False)

    progress.set(len(places), "checksum of what is there")
    checksum = weights_sha256(_each(read, places, progress))
    if _begin(target, checksum):
        progress.set(2 * len(places), "writing")
        save_model(target, victim)
    return checksum


def _definition(folder: Path, weights: Path, num_classes: int) -> Definition:
    """What to make of a Hugging Face folder: its own head, and a type that holds all its types."""
    config = read_hugging_face_config(folder)
    names, found = port_of(config).names, find_tensors(weights)
    language_model = Definition(config, head="lm")
    is_tied = head_name(language_model) not in slots(language_model)
    head: Head = "classifier"
    if names.classifier_head in found:
        num_classes = num_classes or found[names.classifier_head].shape[0]
    elif not num_classes and (names.lm_head in found or is_tied):
        head = "lm"
    elif not num_classes:
        raise UserError(
            f"{folder} holds a model without a head; give --num_classes to make it a classifier"
        )
    kinds = {
        tensor.file.tensors[tensor.name].dtype_name
        for name, tensor in found.items()
        if not name.endswith(names.ignored)
    }
    if "F64" in kinds:
        raise UserError(f"{folder} has weights of type F64, which would lose bits; save it as F32")
    dtype = _TYPES.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"
    return Definition(
        config,
        head=head,
        num_classes=num_classes or 2,
        numerics=Numerics(param_dtype=dtype),
        **layer_loop(config),
    )


def _tensors_of(victim: Victim) -> Callable[[str], np.ndarray]:
    """A victim's weights as Hugging Face has them, by name."""
    places = slots(victim.definition)
    return lambda name: places[name].to_hugging_face(leaf_at(victim.params, places[name].path))


def _each(
    read: Callable[[str], np.ndarray], names: Iterable[str], progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    for name in names:
        yield name, read(name)
        progress.advance()


def _each_of_ours(
    folder: Path, places: Mapping[str, Slot], progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """What stands in a folder of ours, with one array at a time in memory."""
    held: dict[str, list[str]] = {}
    for name, slot in places.items():
        held.setdefault(".".join(slot.path), []).append(name)
    for path, leaf in iterate_model(folder, _one_device(), AxisRules()):
        for name in held[path]:
            yield name, places[name].to_hugging_face(leaf)
            progress.advance()


def _one_device() -> Mesh:
    return make_mesh(MeshConfig())


def _run_torch_bin(folder: Path, target: Path) -> None:
    """Reads torch's files in another process, where there is nothing to steal or to break."""
    # Without -P a file called torch.py in the user's folder would be run.
    command = [sys.executable, "-P", "-m", torch_bin.__name__, str(folder), str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)  # stderr shows its progress
    if done.returncode:
        reason = done.stdout.strip() or f"reading {folder} ended with status {done.returncode}"
        raise UserError(reason)


def _check_target(target: Path) -> None:
    if target.is_dir() and not (target / _RECORD).is_file():
        if any(path.name != _FROM_TORCH for path in target.iterdir()):
            raise UserError(f"--to={target} holds other files; give a new folder")


def _begin(target: Path, checksum: str) -> bool:
    """Claims the target for this conversion; returns whether there is anything to write."""
    record = target / _RECORD
    if record.is_file():
        before = read_json(record)
        if before["weights_sha256"] != checksum:
            raise UserError(f"--to={target} holds another conversion; give another folder")
        return not before["verified"]
    write_json(record, {"weights_sha256": checksum, "verified": False})
    return True


def _finish(target: Path, source: str, checksum: str, written: str) -> None:
    verified = checksum == written
    content = {"from": source, "weights_sha256": checksum, "verified": verified}
    write_json(target / _RECORD, content)
    if not verified:
        raise UserError(
            f"{target}: what was written is not what was read (sha256 {written}, not {checksum}); "
            "check the disk, then run the same command again"
        )
