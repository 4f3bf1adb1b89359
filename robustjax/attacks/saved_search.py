"""The state of a search on disk, so that an interrupted one goes on at the iteration.

One small file holds the batch that is being attacked: its state, what its iterations showed, and a
fingerprint of all that defines it. It is written every few seconds, whole or not at all, and is
gone when the search is done. It is an archive of arrays (``npz``) and holds no pickled objects.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from robustjax.attacks.frame import BatchRun, Seen
from robustjax.models.transformer import Params
from robustjax.models.victim import Victim
from robustjax.runtime import distributed
from robustjax.runtime.files import write_bytes
from robustjax.runtime.rows import fetch

_LOG = logging.getLogger(__name__)


class Found(NamedTuple):
    """What an interrupted search had got to.

    Attributes:
        state: what of its state was saved, on the host.
        seen: its iterations.
    """

    state: Any
    seen: Seen


class SavedSearch:
    """The file of a search, or none."""

    def __init__(self, path: str | os.PathLike[str] | None, every_seconds: float = 5.0):
        """Remembers where to save.

        Args:
            path: the file; None saves nothing.
            every_seconds: how often, at most.
        """
        self._path = None if path is None else Path(path)
        self._every = every_seconds
        self._last = time.monotonic()

    @property
    def is_on(self) -> bool:
        """Whether anything is saved."""
        return self._path is not None

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return self._path is not None and time.monotonic() - self._last >= self._every

    def save(self, key: str, state: Any, seen: Seen) -> None:
        """Writes a state and the iterations up to it, of all rows and on the host."""
        assert self._path is not None
        self._last = time.monotonic()
        if not distributed.is_primary():
            return
        leaves = jax.tree.leaves((state, seen._replace(calls={})))
        arrays = {f"leaf_{number:03d}": leaf for number, leaf in enumerate(leaves)}
        arrays |= {f"calls_{name}": count for name, count in seen.calls.items()}
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(key), digest=np.array(_digest(arrays)), **arrays)
        write_bytes(self._path, buffer.getvalue())
        self._last = time.monotonic()  # again: it may take long

    def load(self, key: str, like: Any) -> Found | None:
        """What was saved of this very search, or None; the file of another one is left alone.

        Args:
            key: see ``fingerprint``.
            like: a state of the same structure.
        """
        if self._path is None:
            return None
        found = distributed.from_primary(lambda: self._read(key), "the saved search")
        if found is None:
            return None
        arrays, calls = found
        leaves = [arrays[name] for name in sorted(arrays)]
        of_state = len(jax.tree.leaves(like))
        state = jax.tree.unflatten(jax.tree.structure(like), leaves[:of_state])
        return Found(state, Seen._make([*leaves[of_state:], calls]))

    def _read(self, key: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The arrays of the file by name, and the calls of programs, if it is of this search."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as file:
                arrays = dict(file)
            found, digest = str(arrays.pop("key")), str(arrays.pop("digest"))
            if digest != _digest(arrays):
                raise ValueError("its content is not what was written")
        except Exception as error:  # a damaged archive can fail in many ways
            _LOG.warning("%s cannot be read (%s); this batch starts again", self._path, error)
            return None
        if found != key:
            return None
        calls = {name[6:]: arrays.pop(name) for name in sorted(arrays) if name[:6] == "calls_"}
        return arrays, calls

    def clear(self) -> None:
        """Removes the file: the search is done."""
        if self._path is not None and distributed.is_primary():
            self._path.unlink(missing_ok=True)


NEVER_SAVED = SavedSearch(None)
"""For a search that starts anew whenever it is interrupted."""


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Of names and contents."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


def fingerprint(attack: Any, run: BatchRun) -> str:
    """Of all that defines the search of a batch, weights included."""
    digest = hashlib.sha256()
    about = {
        "attack": [attack.name, dataclasses.asdict(attack)],
        "seed": int(run.seed),
        "tokenizer": run.victim.tokenizer.fingerprint,
        "slots": [prompt.slot for prompt in run.everyone],
        "texts": [(prompt.surrounding.left, prompt.surrounding.right) for prompt in run.everyone],
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    for leaf in jax.tree.leaves(fetch(run.batch)):
        digest.update(f"{leaf.shape}".encode() + leaf.tobytes())
    digest.update(of_models(run.victim, run.companion))
    return digest.hexdigest()


def of_models(*models: Victim | None) -> bytes:
    """What changes with the function or any weight of models; every process calls it."""
    parts = []
    for model in models:
        if model is not None:
            sums = fetch(weight_sums(model.params))
            parts.append(repr(model.definition).encode() + sums.tobytes())
    return b"".join(parts)


@jax.jit
def weight_sums(params: Params) -> UInt32[Array, " leaves"]:
    """A number for each array of weights that changes with any bit of it and with their order.

    It is taken where the weights are, and does not depend on how they are split.
    """

    def one(leaf: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        factor = jnp.ones(leaf.shape, jnp.uint32)
        stride = 2
        for axis in reversed(range(leaf.ndim)):
            place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            factor = factor + np.uint32(stride % 2**32) * place
            stride *= leaf.shape[axis]
        return (bits.astype(jnp.uint32) * factor).sum(dtype=jnp.uint32)

    return jnp.stack([one(leaf) for leaf in jax.tree.leaves(params)])
