"""What weights are, in one word: a checksum over their names, types, shapes and bits."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from robustjax.models.hf_load import find_tensors
from robustjax.models.model_folder import iterate_model
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh


def weights_sha256(tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    """The checksum of a model: over name, type, shape and bits of every tensor.

    Args:
        tensors: name and tensor as Hugging Face has them, in any order; none is kept.
    """
    lines = []
    for name, tensor in tensors:
        bits = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(bits).hexdigest()
        lines.append(f"{name} {tensor.dtype} {list(tensor.shape)} {digest}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def folder_sha256(folder: Path, *, is_ours: bool) -> str:
    """The checksum of the weights in a model's folder, read one after the other.

    It tells two models of one format apart; a model has another one in each format.

    Args:
        folder: where the weights are.
        is_ours: whether they are Orbax arrays of ours, or Hugging Face's files.

    Raises:
        UserError: the folder is damaged, or holds no weights.
    """
    if is_ours:
        # A device of its own: of several processes each reads the whole.
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        arrays = iterate_model(folder, mesh, AxisRules())
        return weights_sha256((name, np.asarray(leaf)) for name, leaf in arrays)
    return weights_sha256((name, found.read()) for name, found in find_tensors(folder).items())
