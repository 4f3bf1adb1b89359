"""Draw panels of lines, and the style of all figures."""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from robustjax.analysis import ink, scales
from robustjax.analysis.drawing import Panel, XAxis, YAxis

Marks = Literal["band", "bars"]

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
    "figure.dpi": 150,
    "figure.labelsize": 9.5,
    # A viewer of an SVG without the first takes its own font of the second kind.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "savefig.dpi": 150,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "robustjax",
}

_COORDINATES = re.compile(rb'(?<= d=")[^"]+|(?<= points=")[^"]+')
_DECIMALS = re.compile(rb"(\.\d\d)\d+")


def size_colours(count: int, family: str = "") -> list[str]:
    """Colours for model sizes, small to large: dark to light, without the pale end.

    Args:
        count: how many.
        family: the model family; Qwen is told from all others by another map.
    """
    return _colours(count, "magma" if family.lower().startswith("qwen") else "viridis")


def round_colours(count: int) -> list[str]:
    """Colours for rounds of adversarial training, first to last."""
    return _colours(count, "plasma")


def _colours(count: int, name: str) -> list[str]:
    colour_map = matplotlib.colormaps[name]
    places = [0.9 * index / (count - 1) for index in range(count)] if count > 1 else [0.35] * count
    return [matplotlib.colors.to_hex(colour_map(place)) for place in places]


def draw(
    panels: Sequence[Panel],
    x_axis: XAxis,
    y_axis: YAxis,
    legend_title: str,
    marks: Marks,
    columns: int = 3,
) -> Figure:
    """Draw panels that share both axes, with one legend beside them.

    Points without a finite `y`, or without a place on a logarithmic axis, are not drawn.

    Args:
        panels: at least one.
        x_axis: the abscissa.
        y_axis: the ordinate; on a logit scale bounds of 0 and 1 reach the edge of the panel.
        legend_title: what distinguishes the lines.
        marks: draw intervals as bands along the lines, or as bars side by side.
        columns: panels a row.

    Returns:
        The drawn figure, its layout settled.
    """
    with house_style():
        columns = min(columns, len(panels))
        rows = math.ceil(len(panels) / columns)
        wide = columns == 1 or len(x_axis.ticks) >= MANY_TICKS
        width = LONE_PANEL_WIDTH if wide else PANEL_WIDTH
        handles = legend_handles(panels)
        legend_width = LEGEND_WIDTH if handles else 0.0
        size = (columns * width + legend_width, rows * PANEL_HEIGHT + 0.3)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        axes = list(grid.flat)
        fill(axes, panels, x_axis, y_axis, marks, width)
        for ax, panel in zip(axes, panels, strict=False):
            ax.set_title(panel.title)
            ax.label_outer(remove_inner_ticks=True)
        for index in range(len(panels), len(axes)):
            axes[index].set_axis_off()
            # The panel above an empty place is the lowest of its column and keeps its tick labels.
            axes[index - columns].xaxis.set_tick_params(bottom=True, labelbottom=True)
        figure.supxlabel(x_axis.label)
        figure.supylabel(y_axis.label)
        if handles:
            figure.legend(handles=handles, title=legend_title, loc="outside right center")
        settle(figure)
    return figure


def fill(
    axes: Sequence[Axes],
    panels: Sequence[Panel],
    x_axis: XAxis,
    y_axis: YAxis,
    marks: Marks,
    width: float,
) -> None:
    """Scale axes that share abscissa and ordinate, and draw a panel into each.

    Args:
        axes: as many as panels, or more.
        panels: what to draw.
        x_axis: the abscissa.
        y_axis: the ordinate.
        marks: of intervals.
        width: of a panel in inches.
    """
    curves = [[ink.curve(line, x_axis, y_axis) for line in panel.lines] for panel in panels]
    values = np.concatenate(
        [np.zeros((5, 0)), *(curve.values for some in curves for curve in some)], axis=1
    )
    scales.scale_x(axes[0], values[0], x_axis, width)
    scales.scale_y(axes[0], values[1:4].ravel(), y_axis)
    for ax, panel, some in zip(axes, panels, curves, strict=False):
        ink.draw_panel(ax, panel, some, x_axis, y_axis, marks)


def settle(figure: Figure) -> None:
    """Solve the layout once; otherwise every file saved would solve it twice."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine(None)


def legend_handles(panels: Sequence[Panel]) -> list[Line2D]:
    """An entry for each label that is not empty, and one for lower bounds if there are any."""
    lines = {line.label: line for panel in panels for line in panel.lines if line.label}
    handles = [
        Line2D([], [], color=line.colour, marker=line.marker, label=line.label)
        for line in lines.values()
    ]
    if any(p.is_bound for panel in panels for line in panel.lines for p in line.points):
        handles.append(Line2D([], [], color="#333333", label="at least", **ink.BOUND))
    return handles


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file; they depend on the figure and the matplotlib version alone."""
    return _saved(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """The bytes of an SVG file, text as text; they depend on no more than those of `png`."""
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    return _COORDINATES.sub(
        lambda found: _DECIMALS.sub(rb"\1", found[0]), _saved(figure, "svg", metadata)
    )


def pdf(figure: Figure) -> bytes:
    """The bytes of a PDF file, fonts embedded; they depend on no more than those of `png`."""
    return _saved(figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None})


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draws with our settings, whatever the user's own are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield
