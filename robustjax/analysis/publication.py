"""One panel as a file for a paper: the width of a column, no title, text of its size."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from robustjax.analysis import canvas
from robustjax.analysis.drawing import Panel, XAxis, YAxis

SIZE = (3.5, 2.5)
"""Inches."""

STYLE: dict[Any, Any] = {
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "font.size": 6.5,
    "grid.linewidth": 0.4,
    "legend.fontsize": 6.5,
    "legend.handlelength": 1.4,
    "legend.labelspacing": 0.35,
    "legend.title_fontsize": 6.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}

SHORT = 8
"""Characters of labels for which a legend has room beside the axes."""


def publication(
    panel: Panel,
    x_axis: XAxis,
    y_axis: YAxis,
    legend_title: str,
    marks: canvas.Marks,
    has_legend: bool,
) -> bytes:
    """A PDF file of one panel, always of the same bytes, its fonts embedded as TrueType.

    Args:
        panel: its title is not drawn: a paper has it in the caption.
        x_axis: the abscissa.
        y_axis: the ordinate.
        legend_title: what distinguishes the lines.
        marks: draw intervals as bands along the lines, or as bars side by side.
        has_legend: whether there is one, beside the axes or below them if its words are long.
    """
    with canvas.house_style():
        matplotlib.rcParams.update(STYLE)
        figure = _drawn(panel, x_axis, y_axis, marks)
        handles = canvas.legend_handles([panel])
        if has_legend and handles:
            _add_legend(figure, handles, legend_title)
        canvas.settle(figure)
    return canvas.pdf(figure)


def _drawn(panel: Panel, x_axis: XAxis, y_axis: YAxis, marks: canvas.Marks) -> Figure:
    figure = Figure(figsize=SIZE, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    ax = figure.subplots()
    canvas.fill([ax], [panel], x_axis, y_axis, marks, SIZE[0])
    ax.set_xlabel(x_axis.label)
    ax.set_ylabel(y_axis.label)
    return figure


def _add_legend(figure: Figure, handles: Sequence[Line2D], title: str) -> None:
    longest = max(len(str(handle.get_label())) for handle in handles)
    if longest <= SHORT:
        figure.legend(handles=handles, title=title, loc="outside right center")
    else:
        columns = max(1, 60 // (longest + 6))
        figure.legend(handles=handles, title=title, loc="outside lower center", ncols=columns)
