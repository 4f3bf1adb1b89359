"""The two doors between host and devices: arrays that are put on the mesh, and fetched from it.

A process can touch only what lies on its own devices. Where rows of a batch (attacked examples,
training texts) are split over processes, each makes, puts and fetches its own rows; where all need
to know, rows are gathered. Where they are not split (the `tensor` axis spans processes, or the rows
cannot be split evenly) each process has them all, and all make the same. In a single process all
rows are its own, and the doors are plain copies.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Bool, Int

from robustjax.runtime import distributed
from robustjax.runtime.mesh import AxisRules, named_sharding, replicated


def put(value: Any, sharding: Sharding) -> Array:
    """A host array, the same in every process, on the devices.

    Unlike `jax.device_put` it trusts that it is the same, and asks no other process.
    """
    if distributed.count() == 1:
        return jax.device_put(value, sharding)
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def fetch(tree: Any) -> Any:
    """Whole arrays on the host of every process, wherever they lie; all processes have to ask."""
    return jax.tree.map(np.asarray, _everywhere(tree))


def _everywhere(tree: Any) -> Any:
    """Arrays of which every process has a whole copy."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        return _laid_out(NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)

    return jax.tree.map(one, tree)


def lay_out(tree: Any, shardings: Any) -> Any:
    """Arrays on the devices laid out in another way; those that lie so already stay.

    Args:
        tree: arrays of a mesh.
        shardings: of each.
    """

    def one(leaf: Array, sharding: NamedSharding) -> Array:
        if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        return _laid_out(sharding)(leaf)

    return jax.tree.map(one, tree, shardings)


@functools.lru_cache(maxsize=64)
def _laid_out(sharding: NamedSharding) -> Callable[[Array], Array]:
    return jax.jit(lambda x: x, out_shardings=sharding)


class Rows:
    """Rows of a batch, and which of them are this process's own.

    Attributes:
        size: how many there are.
        mine: the numbers of its own, ascending.
    """

    def __init__(self, mesh: Mesh, rules: AxisRules, size: int, meaning: str = "examples"):
        """Splits them as the rules say, if they can be split evenly.

        Args:
            mesh: the devices.
            rules: how named axes are split over the mesh.
            size: how many there are.
            meaning: the name of their axis.
        """
        self.size = size
        self._mesh, self._rules, self._meaning = mesh, rules, meaning
        self.mine: Int[np.ndarray, " R"] = np.arange(size)
        if distributed.count() > 1:
            found = self._sharding((size,), 0).addressable_devices_indices_map((size,)).values()
            self.mine = np.unique(np.concatenate([self.mine[index] for index in found if index]))

    @property
    def are_split(self) -> bool:
        """Whether other processes have rows that this one has not."""
        return len(self.mine) < self.size

    @property
    def split(self) -> NamedSharding | None:
        """How they are split over devices (the first axis of an array); None if they are not."""
        sharding = self._sharding((self.size,), 0)
        return None if sharding.is_fully_replicated else sharding

    def _sharding(self, shape: tuple[int, ...], axis: int) -> NamedSharding:
        axes: list[str | None] = [None] * len(shape)
        axes[axis] = self._meaning
        return named_sharding(self._mesh, self._rules, tuple(axes), shape)

    def put(self, tree: Any, axis: int = 0) -> Any:
        """Places arrays of own rows on the mesh.

        Args:
            tree: host arrays.
            axis: which of their axes are the rows.
        """

        def one(x: Any) -> Array:
            shape = list(np.shape(x))
            shape[axis] = self.size
            sharding = self._sharding(tuple(shape), axis)
            if distributed.count() == 1:
                return jax.device_put(x, sharding)
            host = np.asarray(x)

            def part(index: Any) -> np.ndarray:
                wanted = np.arange(self.size)[index[axis]]
                rest = (*index[:axis], slice(None), *index[axis + 1 :])
                return np.take(host[rest], np.searchsorted(self.mine, wanted), axis)

            return jax.make_array_from_callback(tuple(shape), sharding, part)

        return jax.tree.map(one, tree)

    def fetch(self, tree: Any) -> Any:
        """Own rows (the first axis) of arrays on the host; all processes have to ask."""

        def one(x: Any) -> np.ndarray:
            if not isinstance(x, jax.Array) or x.is_fully_addressable:
                return np.asarray(x)
            if x.is_fully_replicated:
                return np.asarray(x)[self.mine]
            x = lay_out(x, self._sharding(x.shape, 0))
            parts = {shard.index[0].start: shard.data for shard in x.addressable_shards}
            return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

        return jax.tree.map(one, tree)

    def gather(self, tree: Any, axis: int = 0) -> Any:
        """All rows on the host of every process.

        Args:
            tree: arrays on the devices, or own rows on the host.
            axis: which of their axes are the rows.
        """

        def one(x: Any) -> np.ndarray:
            if isinstance(x, jax.Array):
                return fetch(x)
            x = np.asarray(x)
            if not self.are_split or x.ndim <= axis:
                return x
            if x.dtype.itemsize < 8:
                return fetch(self.put(x, axis))
            # Devices have no numbers of 64 bits, but pairs of 32.
            halves = np.ascontiguousarray(x[..., None]).view(np.uint32)
            return fetch(self.put(halves, axis)).view(x.dtype)[..., 0]

        return jax.tree.map(one, tree)

    def own(self, tree: Any, axis: int = 0) -> Any:
        """Own rows of host arrays with all rows; what has no such axis stays as it is."""

        def one(x: Any) -> Any:
            return np.take(x, self.mine, axis) if np.ndim(x) > axis else x

        return jax.tree.map(one, tree) if self.are_split else tree


def anywhere(*flags: bool) -> Bool[np.ndarray, " N"]:
    """Which of some flags any process has raised; waits for the devices."""
    return np.array(flags, bool) if distributed.count() == 1 else np.asarray(_asked(flags))


class Heard:
    """What any process said a call ago, so that nobody waits for it.

    Work that goes on step by step stops or saves only where all processes do. A single process
    hears itself at once.
    """

    def __init__(self) -> None:
        self._asked: Array | None = None

    def __call__(self, *flags: bool) -> Bool[np.ndarray, " N"]:
        """Says one's own flags; gives those that any process raised."""
        if distributed.count() == 1:
            return np.array(flags, bool)
        before, self._asked = self._asked, _asked(flags)
        return np.zeros(len(flags), bool) if before is None else np.asarray(before)


def _asked(flags: tuple[bool, ...]) -> Array:
    every, whole, any_of = _panel()
    mine = np.tile(np.array(flags, bool), (jax.local_device_count(), 1))
    return any_of(jax.make_array_from_process_local_data(every, mine))


@functools.cache
def _panel() -> tuple[NamedSharding, NamedSharding, Callable[[Array], Array]]:
    """A row for every device, what all of them know, and how that is found out."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    every = NamedSharding(mesh, PartitionSpec("all"))
    whole = replicated(mesh)
    return every, whole, jax.jit(lambda x: x.any(0), out_shardings=whole)
