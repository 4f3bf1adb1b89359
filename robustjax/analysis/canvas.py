"""Draw panels of lines, and the style of all figures."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullLocator,
)

from robustjax.evaluation import metrics

LOGIT_TICKS = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_WIDTH = 2.9, 2.7, 1.4
"""Inches."""

LONE_PANEL_WIDTH = 4.0
"""Inches; a figure of one panel, or with many tick labels, has a wider one."""

MANY_TICKS = 8

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "figure.labelsize": 9.5,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "savefig.dpi": 150,
}


@dataclasses.dataclass(frozen=True)
class Point:
    """A value with its interval; `low` and `high` may be NaN for none."""

    x: float
    y: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a panel, one entry of the legend."""

    label: str
    colour: str
    marker: str
    points: Sequence[Point]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    lines: Sequence[Line]


@dataclasses.dataclass(frozen=True)
class XAxis:
    """The abscissa of all panels.

    Attributes:
        label: with its unit.
        kind: "size" (logarithmic, one tick a model), "flops" (logarithmic) or "round" (integers).
        ticks: for "size", the place and label of each tick.
    """

    label: str
    kind: Literal["size", "flops", "round"]
    ticks: Sequence[tuple[float, str]] = ()


@dataclasses.dataclass(frozen=True)
class YAxis:
    """The ordinate of all panels: proportions, on a linear or a logit scale."""

    label: str
    kind: Literal["fraction", "logit"]
    from_zero: bool = True


def size_colours(count: int) -> list[str]:
    """Colours for model sizes, small to large: viridis without its pale end."""
    viridis = matplotlib.colormaps["viridis"]
    places = [0.9 * index / (count - 1) for index in range(count)] if count > 1 else [0.35]
    return [matplotlib.colors.to_hex(viridis(place)) for place in places]


def draw(
    panels: Sequence[Panel],
    x_axis: XAxis,
    y_axis: YAxis,
    legend_title: str,
    marks: Literal["band", "bars"],
    columns: int = 3,
) -> Figure:
    """Draw panels that share both axes, with one legend beside them.

    Points without a finite `y`, or without a positive `x` on a logarithmic axis, are not drawn.

    Args:
        panels: at least one.
        x_axis: the abscissa.
        y_axis: the ordinate; on a logit scale bounds of 0 and 1 reach the edge of the panel.
        legend_title: what distinguishes the lines.
        marks: draw intervals as bands along the lines, or as bars side by side.
        columns: panels a row.

    Returns:
        The drawn figure.
    """
    with house_style():
        columns = min(columns, len(panels))
        rows = math.ceil(len(panels) / columns)
        wide = columns == 1 or len(x_axis.ticks) >= MANY_TICKS
        width = LONE_PANEL_WIDTH if wide else PANEL_WIDTH
        size = (columns * width + LEGEND_WIDTH, rows * PANEL_HEIGHT + 0.3)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        drawn = [[_drawable(line, x_axis, y_axis) for line in panel.lines] for panel in panels]
        points = [point for lines in drawn for line in lines for point in line.points]
        _scale_x(axes[0], points, x_axis, width)
        _scale_y(axes[0], points, y_axis)
        for ax, panel, lines in zip(axes, panels, drawn, strict=False):
            _draw_panel(ax, panel.title, lines, x_axis, marks)
            ax.label_outer(remove_inner_ticks=True)
        for index in range(len(panels), len(axes)):
            axes[index].set_axis_off()
            # The panel above an empty place is the lowest of its column and keeps its tick labels.
            axes[index - columns].xaxis.set_tick_params(bottom=True, labelbottom=True)
        figure.supxlabel(x_axis.label)
        figure.supylabel(y_axis.label)
        figure.legend(
            handles=_legend_handles(panels), title=legend_title, loc="outside right center"
        )
    return figure


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file; they depend on the figure and the matplotlib version alone."""
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draws with our settings, whatever the user's own are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _drawable(line: Line, x_axis: XAxis, y_axis: YAxis) -> Line:
    """The line in plot units, without the points that have no place on the axes."""
    points = [
        point
        for point in sorted(line.points, key=lambda point: point.x)
        if math.isfinite(point.y) and (x_axis.kind == "round" or point.x > 0)
    ]
    if y_axis.kind == "logit":
        points = [Point(p.x, *map(float, metrics.logit10([p.y, p.low, p.high]))) for p in points]
    return dataclasses.replace(line, points=points)


def _draw_panel(ax: Axes, title: str, lines: Sequence[Line], x_axis: XAxis, marks: str) -> None:
    ax.set_title(title)
    if not any(line.points for line in lines):
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", color="#666666")
    edges = ax.get_ylim()
    # Many bands on top of each other must not hide the lines.
    veil = min(0.11, 0.5 / max(1, len(lines)))
    for index, line in enumerate(lines):
        if not line.points:
            continue
        x = np.array([point.x for point in line.points])
        y = np.array([point.y for point in line.points])
        # On a logit scale a bound of 0 or 1 is infinite: it is drawn to the edge of the panel.
        low = np.clip([point.low for point in line.points], *edges)
        high = np.clip([point.high for point in line.points], *edges)
        if marks == "bars":
            x = _dodge(x, index - (len(lines) - 1) / 2, x_axis)
            ax.vlines(x, low, high, color=line.colour, linewidth=1.1, alpha=0.8)
        elif len(x) > 1:
            ax.fill_between(x, low, high, color=line.colour, alpha=veil, linewidth=0)
        else:
            ax.vlines(x, low, high, color=line.colour, linewidth=1.1, alpha=0.6)
        ax.plot(x, y, color=line.colour, marker=line.marker if len(x) <= 24 else None)


def _dodge(x: np.ndarray, steps: float, x_axis: XAxis) -> np.ndarray:
    """Shift points sideways a little, so that the bars of two lines do not cover each other."""
    if x_axis.kind == "round":
        return x + 0.06 * steps
    places = sorted(place for place, _ in x_axis.ticks)
    low, high = _size_limits(places)
    closest = min((b / a for a, b in zip(places, places[1:], strict=False)), default=math.inf)
    return x * min((high / low) ** 0.02, closest**0.2) ** steps


def _legend_handles(panels: Sequence[Panel]) -> list[Line2D]:
    lines = {line.label: line for panel in panels for line in panel.lines}
    return [
        Line2D([], [], color=line.colour, marker=line.marker, label=line.label)
        for line in lines.values()
    ]


def _size_limits(places: Sequence[float]) -> tuple[float, float]:
    low, high = min(places), max(places)
    margin = max(1.5, (high / low) ** 0.1)
    return low / margin, high * margin


def _scale_x(ax: Axes, points: Sequence[Point], x_axis: XAxis, panel_width: float) -> None:
    if x_axis.kind == "size":
        places = [place for place, _ in x_axis.ticks]
        ax.set_xscale("log")
        ax.set_xlim(*_size_limits(places))
        ax.xaxis.set_major_locator(FixedLocator(places))
        ax.xaxis.set_minor_locator(NullLocator())
        names = dict(x_axis.ticks)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda place, _: names.get(place, "")))
        room = _tick_room(places, panel_width)
        for other in ax.figure.axes:
            if room < 0.18:  # inches, less than the height of a slanted label
                other.tick_params(axis="x", labelrotation=90, labelsize=7)
            elif room < 0.48:  # less than the width of a label
                other.tick_params(axis="x", labelrotation=60)
    elif x_axis.kind == "round":
        last = max((point.x for point in points), default=1)
        ax.set_xlim(-0.15 - 0.03 * last, max(last, 1) * 1.03 + 0.15)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    else:
        ax.set_xscale("log")
        exponents = [math.log10(point.x) for point in points] or [0.0, 1.0]
        low, high = min(exponents) - 0.1, max(exponents) + 0.1
        while math.floor(high) - math.ceil(low) < 1:  # one tick does not make a scale
            below, above = math.ceil(low) - 1, math.floor(high) + 1
            if low - below < above - high:
                low = below - 0.05
            else:
                high = above + 0.05
        ax.set_xlim(10**low, 10**high)
        ax.xaxis.set_major_locator(LogLocator(numticks=6))
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda place, _: ""))


def _tick_room(places: Sequence[float], panel_width: float) -> float:
    """Inches between the two closest tick labels of sizes."""
    low, high = _size_limits(places)
    ordered = sorted(math.log(place) for place in places)
    inches_per_unit = 0.8 * panel_width / math.log(high / low)
    gaps = [(b - a) * inches_per_unit for a, b in zip(ordered, ordered[1:], strict=False)]
    return min(gaps, default=math.inf)


def _scale_y(ax: Axes, points: Sequence[Point], y_axis: YAxis) -> None:
    values = [v for p in points for v in (p.y, p.low, p.high) if math.isfinite(v)]
    if y_axis.kind == "fraction":
        low = 0.0 if y_axis.from_zero or not values else math.floor(min(values) * 10) / 10
        low = min(low, 0.8)
        ax.set_ylim(low - 0.03 * (1 - low), 1 + 0.03 * (1 - low))
        # Steps whose labels are whole percents.
        step = next(step for step in (0.05, 0.1, 0.2) if (1 - low) / step <= 6.5)
        ax.yaxis.set_major_locator(MultipleLocator(step))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:.0%}"))
        return
    ticks = [float(tick) for tick in metrics.logit10(LOGIT_TICKS)]
    low, high = min(values, default=-1.0), max(values, default=1.0)
    margin = 0.06 * (high - low) + 0.05
    low, high = low - margin, high + margin
    while sum(low <= tick <= high for tick in ticks) < 2:  # one tick does not make a scale
        outside = [tick for tick in ticks if not low <= tick <= high]
        nearest = min(outside, key=lambda tick: max(low - tick, tick - high))
        low, high = min(low, nearest - 0.05), max(high, nearest + 0.05)
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    names = {tick: f"{rate:.0%}" for tick, rate in zip(ticks, LOGIT_TICKS, strict=True)}
    ax.yaxis.set_major_formatter(FuncFormatter(lambda place, _: names.get(place, "")))
