"""Reads the text of a compiled program (HLO), as far as its costs need it.

The text is what XLA prints of an optimised module: computations, one instruction a line, each with
the shape of its result, what it is applied to, and attributes.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")


class Buffer(NamedTuple):
    """One array that an instruction yields or takes.

    Attributes:
        kind: type of its numbers: `f32`, `bf16`, `pred`, ...
        shape: sizes of its axes.
        is_near: whether it stays in the chip's own memory and never reaches the main one.
    """

    kind: str
    shape: tuple[int, ...]
    is_near: bool

    @property
    def size(self) -> int:
        """Numbers."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding."""
        width = _BYTES.get(self.kind)
        if width is not None:
            return width * self.size
        bits = re.search(r"\d+", self.kind)
        return -(-self.size * int(bits[0]) // 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: within its computation.
        opcode: what it does.
        type_text: type of its result.
        operands: names of what it is applied to; of a constant its value.
        attributes: the rest of the line.
        is_root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    type_text: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @functools.cached_property
    def buffers(self) -> tuple[Buffer, ...]:
        """The arrays of its result."""
        return tuple(_buffers(self.type_text))

    @property
    def called(self) -> str | None:
        """The computation that it calls, if it calls one."""
        found = _CALLED.search(self.attributes)
        return found[1] if found else None

    def attribute(self, name: str) -> str | None:
        """The value of an attribute that is a single word or a pair of braces."""
        found = re.search(rf"\b{name}=(\{{[^{{}}]*\}}|[^\s,]+)", self.attributes)
        return found[1] if found else None

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers in the braces of an attribute; none if it is not there."""
        text = self.attribute(name)
        return tuple(map(int, re.findall(r"\d+", text))) if text else ()


class Module(NamedTuple):
    """A compiled program.

    Attributes:
        computations: the instructions of each, by name.
        entry: the name of the one that is run.
    """

    computations: dict[str, list[Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int:
        """How often the body of a loop is run.

        Raises:
            ValueError: the text does not tell.
        """
        if found := _TRIPS.search(loop.attributes):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        if condition:
            numbers = {int(value) for value in self._constants(condition[1])}
            if len(numbers) == 1:
                return numbers.pop()
        raise ValueError(f"the number of rounds of loop {loop.name} is not in the program's text")

    def _constants(self, computation: str) -> Iterator[str]:
        for one in self.computations[computation]:
            if one.opcode == "constant" and one.type_text.startswith(("s32[]", "u32[]")):
                yield one.operands[0]
            elif one.called and one.called != computation:
                yield from self._constants(one.called)


def parse(text: str) -> Module:
    """Reads the text of a module.

    Raises:
        ValueError: it is no module.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    current: list[Instruction] | None = None
    for line in re.sub(r"/\*[^*]*\*/", "", text).splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(found[2], found[3], bool(found[1])))
    if not entry:
        raise ValueError("this is not the text of a compiled program")
    return Module(computations, entry)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_text, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    start = len(opcode)
    stop = _closing(rest, start)
    operands = tuple(
        part.split()[-1].lstrip("%") for part in _split(rest[start + 1 : stop]) if part.split()
    )
    return Instruction(name, opcode.strip(), type_text, operands, rest[stop + 1 :], is_root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"no end of {text[start : start + 40]!r}")


def _split(text: str) -> Iterator[str]:
    """Parts of a list, whose items may hold lists themselves."""
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        if letter == "," and not depth:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _buffers(type_text: str) -> Iterator[Buffer]:
    for kind, sizes, layout in _SHAPE.findall(type_text):
        shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        yield Buffer(kind, shape, "S(" in layout)


def groups_of(instruction: Instruction, devices: int) -> list[list[int]]:
    """The devices that exchange data in a collective, group by group.

    Args:
        instruction: the collective.
        devices: of the program, which are one group if the text names none.
    """
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text):
        between = [_integers(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
        # What stays where it is is not exchanged.
        return [pair for pair in between if pair[0] != pair[1]] or [[0]]
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text):
        return [_integers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, sizes = _integers(iota[1]), _integers(iota[2])
        ids = np.arange(math.prod(sizes)).reshape(sizes)
        if iota[3]:
            ids = ids.transpose(_integers(iota[3]))
        return ids.reshape(shape).tolist()
    return [list(range(devices))]


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
