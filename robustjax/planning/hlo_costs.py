"""What one run of a compiled program costs a device: products, memory traffic, collectives.

XLA's own analysis counts the body of a loop once. Here everything counts as often as it runs, so
that layers under a scan and passes over candidates are all there.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from robustjax.planning.chips import PASSES
from robustjax.planning.hlo_text import Buffer, Instruction, Module, groups_of

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "optimization-barrier", "copy-done", "async-done"),
    *("async-update", "slice-done", "domain", "add-dependency", "custom-call-done"),
}
"""Instructions that move nothing through the main memory, or are counted where they begin."""

_SLICES = ("dynamic-slice", "slice", "gather")

_COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
_RING = {"all-gather": 1, "all-reduce": 2, "reduce-scatter": 1}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of data between devices.

    Attributes:
        kind: what is exchanged: `all-gather`, `all-reduce`, ...
        bytes: size of the whole array that a group puts together or takes apart, for an all-reduce
            of the array that each device has; for others what one device sends.
        group: devices that exchange data with one another (places in the mesh, flattened).
        times: how often it runs.
        shape: of the result, for people.
        is_in_loop: whether it stands in the body of a loop.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    times: int
    shape: str
    is_in_loop: bool

    @property
    def sent(self) -> float:
        """Bytes that a device sends, if data goes round in a ring; all runs together."""
        size = len(self.group)
        share = _RING[self.kind] * (size - 1) / size if self.kind in _RING else 1.0
        return self.times * self.bytes * share


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one run, on one device.

    Attributes:
        flops: of products, by the passes that each takes of the matrix unit (bfloat16 factors take
            one, float32 factors up to six).
        bytes: read from and written to the main memory.
        collectives: all of them.
    """

    flops: dict[int, float]
    bytes: float
    collectives: tuple[Collective, ...]

    @property
    def total_flops(self) -> float:
        """Of all products, each counted once."""
        return sum(self.flops.values())

    @property
    def sent(self) -> dict[str, float]:
        """Bytes that a device sends, by the kind of collective."""
        found: dict[str, float] = collections.defaultdict(float)
        for one in self.collectives:
            found[one.kind] += one.sent
        return dict(found)


def costs_of(module: Module, devices: int) -> Costs:
    """Adds up a program.

    Args:
        module: its text, read.
        devices: that it runs on.

    Raises:
        ValueError: a loop whose number of rounds the text does not tell.
    """
    counter = _Counter(module, devices)
    counter.computation(module.entry, 1, is_in_loop=False)
    return Costs(dict(counter.flops), float(counter.bytes), tuple(counter.collectives))


class _Counter:
    def __init__(self, module: Module, devices: int):
        self._module, self._devices = module, devices
        self.flops: dict[int, float] = collections.defaultdict(float)
        self.bytes = 0
        self.collectives: list[Collective] = []

    def computation(
        self, name: str, times: int, *, is_in_loop: bool, is_fused: bool = False
    ) -> None:
        """Adds what a computation does in so many runs; inside a fusion, memory is not touched."""
        instructions = self._module.computations[name]
        known = {one.name: one for one in instructions}
        for one in instructions:
            kind = one.opcode.removesuffix("-start")
            operands = [known[operand] for operand in one.operands if operand in known]
            if one.opcode == "while":
                self._loop(one, times)
                continue
            if one.opcode in ("call", "async-start") and one.called:
                self.computation(one.called, times, is_in_loop=is_in_loop, is_fused=is_fused)
                continue
            if one.opcode == "conditional":
                for branch in _branches(one):
                    self.computation(branch, times, is_in_loop=is_in_loop)
                continue
            if kind in _COLLECTIVES:
                self._collective(kind, one, operands, times, is_in_loop)
            elif one.opcode in ("dot", "convolution"):
                passes = _passes(one, operands)
                count = _dot_flops if one.opcode == "dot" else _convolution_flops
                self.flops[passes] += times * count(one, operands)
            elif one.opcode == "fusion" and one.called:
                if "all-reduce-scatter" in one.called:
                    self._reduce_scatter(one, times, is_in_loop)
                else:
                    self.computation(one.called, times, is_in_loop=is_in_loop, is_fused=True)
            if not is_fused and one.opcode not in _FREE and not one.opcode.endswith("-done"):
                self.bytes += times * self._moved(one, operands)

    def _loop(self, loop: Instruction, times: int) -> None:
        body = re.search(r"body=%?([\w.\-]+)", loop.attributes)
        assert body is not None
        self.computation(body[1], times * self._module.trips(loop), is_in_loop=True)

    def _collective(
        self,
        kind: str,
        one: Instruction,
        operands: Sequence[Instruction],
        times: int,
        is_in_loop: bool,
    ) -> None:
        given = sum(buffer.bytes for operand in operands for buffer in operand.buffers)
        groups = groups_of(one, self._devices)
        size = max(map(len, groups))
        # Of the results only all-gather's is larger than what it is given.
        whole = given * size if kind == "all-gather" else given
        if size > 1:
            shape = _bare(one.type_text)
            self.collectives.append(
                Collective(kind, whole, tuple(groups[0]), times, shape, is_in_loop)
            )

    def _reduce_scatter(self, fusion: Instruction, times: int, is_in_loop: bool) -> None:
        """An all-reduce of which each device keeps a part: one instruction on TPUs."""
        assert fusion.called is not None
        for one in self._module.computations[fusion.called]:
            if one.opcode == "all-reduce":
                groups = groups_of(one, self._devices)
                whole = sum(buffer.bytes for buffer in one.buffers)
                shape = _bare(one.type_text)
                self.collectives.append(
                    Collective("reduce-scatter", whole, tuple(groups[0]), times, shape, is_in_loop)
                )

    def _moved(self, one: Instruction, operands: Sequence[Instruction]) -> int:
        """Bytes between the main memory and the device in one run of an instruction."""
        if one.opcode == "copy-start":  # its result names the copy, what is copied, and a flag
            return sum(_far(operand) for operand in operands) + _far_of(one.buffers[:1])
        if one.opcode == "slice-start":  # what is sliced, the slice, and a flag
            source, part = one.buffers[:2]
            return part.bytes * (not source.is_near) + _far_of([part])
        if one.opcode in ("dynamic-slice", "slice"):
            return 2 * _far(one)
        if one.opcode == "dynamic-update-slice":
            return 2 * _far(operands[1])
        if one.opcode == "gather":
            return 2 * _far(one) + sum(map(_far, operands[1:]))
        if one.opcode == "fusion" and one.called:
            return self._moved_by_fusion(one, operands)
        return _far(one) + sum(map(_far, operands))

    def _moved_by_fusion(self, one: Instruction, operands: Sequence[Instruction]) -> int:
        """Of what is only sliced inside no more is read, of what is updated no more written."""
        assert one.called is not None
        read = sum(
            self._read(one.called, place) for place, operand in enumerate(operands) if _far(operand)
        )
        written = self._written(one.called)
        return read + sum(
            size for size, buffer in zip(written, one.buffers, strict=True) if not buffer.is_near
        )

    def _read(self, computation: str, place: int) -> int:
        """Bytes that a fused computation reads of its parameter."""
        inside = self._module.computations[computation]
        given = next(
            one for one in inside if one.opcode == "parameter" and one.operands == (str(place),)
        )
        whole = sum(buffer.bytes for buffer in given.buffers)
        names, total = {given.name}, 0
        for one in inside:  # each after what it is applied to
            places = [i for i, operand in enumerate(one.operands) if operand in names]
            if not places:
                continue
            if one.opcode == "bitcast":
                names.add(one.name)
            elif one.opcode in _SLICES:
                total += sum(buffer.bytes for buffer in one.buffers)
            elif one.opcode == "fusion" and one.called:
                total += sum(self._read(one.called, i) for i in places)
            elif not (one.opcode == "dynamic-update-slice" and places == [0]):
                return whole
        return min(total, whole)

    def _written(self, computation: str) -> list[int]:
        """Bytes that a fused computation writes to each array of its result."""
        inside = {one.name: one for one in self._module.computations[computation]}
        root = next(one for one in inside.values() if one.is_root)

        def sizes(one: Instruction) -> list[int]:
            if one.opcode == "bitcast" and one.operands[0] in inside:
                return sizes(inside[one.operands[0]])
            if one.opcode == "tuple":
                return [size for operand in one.operands for size in sizes(inside[operand])]
            if one.opcode == "dynamic-update-slice":
                return [sum(b.bytes for b in inside[one.operands[1]].buffers)]
            if one.opcode == "fusion" and one.called:
                return self._written(one.called)
            return [buffer.bytes for buffer in one.buffers]

        return sizes(root)


def _branches(one: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.attributes)


def _far(one: Instruction) -> int:
    return _far_of(one.buffers)


def _far_of(buffers: Sequence[Buffer]) -> int:
    return sum(buffer.bytes for buffer in buffers if not buffer.is_near)


def _bare(type_text: str) -> str:
    """A type without its layout."""
    return re.sub(r"\{[^}]*\}", "", type_text)


def _passes(one: Instruction, operands: Sequence[Instruction]) -> int:
    if any(operand.buffers[0].kind != "f32" for operand in operands[:2]):
        return 1
    found = re.search(r"operand_precision=\{(\w+)", one.attributes)
    return PASSES[found[1]] if found else 1


def _dot_flops(one: Instruction, operands: Sequence[Instruction]) -> float:
    left = operands[0].buffers[0].shape
    depth = math.prod(left[axis] for axis in one.numbers("lhs_contracting_dims"))
    return 2.0 * depth * one.buffers[0].size


def _convolution_flops(one: Instruction, operands: Sequence[Instruction]) -> float:
    """Of the places where the window meets a number; a product is a convolution on TPUs."""
    labels = one.attribute("dim_labels")
    assert labels is not None
    left_labels, rest = labels.split("_")
    right_labels, out_labels = rest.split("->")
    left, right = (operand.buffers[0].shape for operand in operands[:2])
    out = one.buffers[0].shape
    pairs = 1.0
    for axis in (label for label in out_labels if label.isdigit()):
        pairs *= _meetings(
            left[left_labels.index(axis)],
            right[right_labels.index(axis)],
            out[out_labels.index(axis)],
            _window(one, int(axis)),
        )
    batch, features = out[out_labels.index("b")], out[out_labels.index("f")]
    return 2.0 * batch * features * right[right_labels.index("i")] * pairs


@dataclasses.dataclass(frozen=True)
class _Window:
    stride: int = 1
    low: int = 0
    left_dilation: int = 1
    right_dilation: int = 1


def _window(one: Instruction, axis: int) -> _Window:
    text = one.attribute("window") or ""

    def value(name: str, default: str) -> str:
        found = re.search(rf"\b{name}=([\d_x\-]+)", text)
        return found[1].split("x")[axis] if found else default

    return _Window(
        int(value("stride", "1")),
        int(value("pad", "0_0").split("_")[0]),
        int(value("lhs_dilate", "1")),
        int(value("rhs_dilate", "1")),
    )


def _meetings(left: int, right: int, out: int, window: _Window) -> int:
    """Pairs of an output and a place of the window that meet a number of the left factor."""
    place = (
        np.arange(out)[:, None] * window.stride
        - window.low
        + np.arange(right)[None] * window.right_dilation
    )
    is_inside = (place >= 0) & (place <= (left - 1) * window.left_dilation)
    return int((is_inside & (place % window.left_dilation == 0)).sum())
