"""One device mesh `(data, fsdp, tensor)` and the rules that lay arrays out on it.

A single device is the mesh (1, 1, 1), so there is no second code path. Arrays name their axes by
what they mean ("batch", "vocab", ...); `AxisRules` says on which mesh axes each meaning is split.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from robustjax.errors import UserError

AXES = ("data", "fsdp", "tensor")

LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis; -1 on one axis means all the rest."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for axis in AXES:
            size = getattr(self, axis)
            if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
                raise UserError(
                    f"mesh.{axis}: {size!r} is not a number of devices; use an integer >= 1, "
                    "or -1 on one axis for all the rest"
                )
        if self.sizes.count(-1) > 1:
            raise UserError(f"mesh: -1 on more than one axis in {self.sizes}; fix all but one")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The sizes in the order of `AXES`."""
        return (self.data, self.fsdp, self.tensor)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh with axes `(data, fsdp, tensor)`.

    Args:
        config: sizes of the axes.
        devices: the devices to use; all of `jax.devices()` by default. A single-process run may ask
            for fewer than there are and gets the first ones; with several processes the mesh has to
            cover all devices, since a process without a device in it would wait for ever.

    Raises:
        UserError: when the sizes do not fit the devices; the message holds the device table.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _resolve(config, devices)
    used = math.prod(sizes)
    num_processes = len({device.process_index for device in devices})
    if used > len(devices) or (used < len(devices) and num_processes > 1):
        relation = "more than" if used > len(devices) else "not all of"
        raise UserError(
            f"mesh: {_product(sizes)} = {used} devices, {relation} the {len(devices)} there are "
            f"({device_summary(devices)}); change mesh.data, mesh.fsdp or mesh.tensor (-1 on one "
            "of them means all the rest)"
        )
    # Auto axes: the compiler propagates shardings; jax.make_mesh alone would give Explicit ones.
    return jax.make_mesh(
        sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:used]
    )


def device_summary(devices: Sequence[jax.Device]) -> str:
    """One line on the devices: how many of which kind in each process."""
    table: dict[tuple[int, str, str], int] = {}
    for device in devices:
        row = (device.process_index, device.platform, device.device_kind)
        table[row] = table.get(row, 0) + 1
    return "; ".join(
        f"process {process}: {count} x {platform} '{kind}'"
        for (process, platform, kind), count in sorted(table.items())
    )


def _product(sizes: Sequence[int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))


def _resolve(config: MeshConfig, devices: Sequence[jax.Device]) -> tuple[int, ...]:
    """Puts a number in the place of -1."""
    if -1 not in config.sizes:
        return config.sizes
    fixed = math.prod(size for size in config.sizes if size != -1)
    if len(devices) % fixed or len(devices) < fixed:
        raise UserError(
            f"mesh: {_product(config.sizes)} leaves no whole number for -1: {len(devices)} devices "
            f"({device_summary(devices)}) are not a multiple of {fixed}; change the fixed axes"
        )
    return tuple(len(devices) // fixed if size == -1 else size for size in config.sizes)


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """On which mesh axes each logical axis is split; () means on none.

    `batch` is for activations and inputs, `examples` for attacked examples (each with its own
    candidates). Both take `data` and `fsdp`: the devices that share weights share the work.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    examples: tuple[str, ...] = ("data", "fsdp")
    candidates: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ("tensor",)
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    layers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            axes = getattr(self, field.name)
            if not isinstance(axes, tuple) or not set(axes) <= set(AXES):
                raise ValueError(
                    f"rule {field.name}: {axes!r} is not a tuple of mesh axes; use some of {AXES}"
                )

    def mesh_axes(self, logical_axis: str | None) -> tuple[str, ...]:
        """The mesh axes of one logical axis; () for None."""
        if logical_axis is None:
            return ()
        names = [field.name for field in dataclasses.fields(self)]
        if logical_axis not in names:
            raise ValueError(f"logical axis {logical_axis!r} has no rule; known: {names}")
        return getattr(self, logical_axis)

    def spec(self, logical_axes: LogicalAxes) -> PartitionSpec:
        """The partition of an array whose axes mean `logical_axes`, whatever its sizes.

        Raises:
            ValueError: an unknown logical axis, or a mesh axis wanted by two axes of the array.
        """
        return _partition(logical_axes, [self.mesh_axes(name) for name in logical_axes])

    def spec_for_shape(
        self, mesh: Mesh, logical_axes: LogicalAxes, shape: Sequence[int]
    ) -> PartitionSpec:
        """As `spec`, but an axis that cannot be split evenly is split less, or not at all.

        Mesh axes are dropped from the right until the rest divide the size: 6 rows on
        `("data", "fsdp")` of 2 x 4 devices are split over `data` only, 5 rows are replicated. (Two
        classes of a classifier head on four `tensor` devices are the everyday case.)
        """
        if len(logical_axes) != len(shape):
            raise ValueError(
                f"logical axes {logical_axes} name {len(logical_axes)} axes, the shape "
                f"{tuple(shape)} has {len(shape)}"
            )
        wanted = [self.mesh_axes(name) for name in logical_axes]
        _partition(logical_axes, wanted)  # a rule clash is an error even where sizes would hide it
        fitting = []
        for axes, size in zip(wanted, shape, strict=True):
            while size % math.prod(mesh.shape[axis] for axis in axes):
                axes = axes[:-1]
            fitting.append(axes)
        return _partition(logical_axes, fitting)


def _partition(logical_axes: LogicalAxes, mesh_axes: Sequence[tuple[str, ...]]) -> PartitionSpec:
    taken = [axis for axes in mesh_axes for axis in axes]
    twice = sorted({axis for axis in taken if taken.count(axis) > 1})
    if twice:
        raise ValueError(
            f"logical axes {logical_axes} use the mesh axis {twice[0]!r} twice; "
            "name one of them None"
        )
    return PartitionSpec(
        *(None if not axes else axes[0] if len(axes) == 1 else axes for axes in mesh_axes)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device holds a whole copy."""
    return NamedSharding(mesh, PartitionSpec())


def named_sharding(
    mesh: Mesh,
    rules: AxisRules,
    logical_axes: LogicalAxes,
    shape: Sequence[int] | None = None,
) -> NamedSharding:
    """The sharding of an array; given its `shape`, axes that do not divide are split less."""
    if shape is None:
        return NamedSharding(mesh, rules.spec(logical_axes))
    return NamedSharding(mesh, rules.spec_for_shape(mesh, logical_axes, shape))


def tree_shardings(
    mesh: Mesh,
    rules: AxisRules,
    logical_tree: PyTree[LogicalAxes],
    like: PyTree | None = None,
) -> PyTree[NamedSharding]:
    """The shardings of a tree of arrays.

    Args:
        mesh: the mesh.
        rules: logical axis -> mesh axes.
        logical_tree: nested dicts whose leaves are tuples of logical axes.
        like: a tree of the same structure with leaves that have a `shape`; when given, axes that do
            not divide are split less, as in `AxisRules.spec_for_shape`.
    """

    def is_axes(node: object) -> bool:
        return isinstance(node, tuple) and all(
            axis is None or isinstance(axis, str) for axis in node
        )

    if like is None:
        return jax.tree.map(
            lambda axes: named_sharding(mesh, rules, axes), logical_tree, is_leaf=is_axes
        )
    return jax.tree.map(
        lambda axes, leaf: named_sharding(mesh, rules, axes, leaf.shape),
        logical_tree,
        like,
        is_leaf=is_axes,
    )
