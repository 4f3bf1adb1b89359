"""What drawings are made of: points, lines, panels and their axes."""

import dataclasses
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Point:
    """A value with its interval; `low` and `high` may be NaN for none.

    Attributes:
        x: abscissa.
        y: ordinate, in the units of the rows: rates are never logits here.
        low: lower end of the interval.
        high: upper end of the interval.
        is_bound: the value is a lower bound of what was not reached; drawn as an open triangle.
    """

    x: float
    y: float
    low: float
    high: float
    is_bound: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a panel, one entry of the legend unless its label is empty."""

    label: str
    colour: str
    marker: str
    points: Sequence[Point]


@dataclasses.dataclass(frozen=True)
class Guides:
    """Straight lines behind the data of a panel with two logarithmic axes.

    Attributes:
        slope: of all of them, on the logarithms.
        count: how many, evenly spread over the panel.
    """

    slope: float = 1.0
    count: int = 30


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted straight line, from one point to another in the units of the axes.

    Attributes:
        label: what is written in the corner of the panel that has most room.
        x0: where it starts.
        y0: where it starts; a rate on a logit axis.
        x1: where it ends.
        y1: where it ends.
    """

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes; where there are fits, no other lines join the points."""

    title: str
    lines: Sequence[Line]
    guides: Guides | None = None
    fits: Sequence[Fit] = ()


@dataclasses.dataclass(frozen=True)
class XAxis:
    """The abscissa of all panels.

    Attributes:
        label: with its unit.
        kind: "size" (logarithmic, one tick a model), "flops" (logarithmic, powers of ten),
            "fraction" (logarithmic, in percent as long as that is short) or "round" (integers).
        ticks: for "size", the place and label of each tick.
    """

    label: str
    kind: Literal["size", "flops", "fraction", "round"]
    ticks: Sequence[tuple[float, str]] = ()

    @property
    def is_log(self) -> bool:
        """Whether only what is above zero has a place."""
        return self.kind != "round"


@dataclasses.dataclass(frozen=True)
class YAxis:
    """The ordinate of all panels.

    Attributes:
        label: with its unit.
        kind: "fraction" (a proportion), "logit" (a proportion between 0 and 1 on a logit scale),
            "flops" (logarithmic, of any positive unit) or "slope" (any number).
        from_zero: for "fraction", whether the axis starts there.
        reference: for "slope", where a horizontal line is drawn; always in view.
    """

    label: str
    kind: Literal["fraction", "logit", "flops", "slope"]
    from_zero: bool = True
    reference: float | None = None

    @property
    def is_log(self) -> bool:
        """Whether only what is above zero has a place."""
        return self.kind == "flops"
