"""Draw matrices of rates, a panel a matrix, every cell with its number."""

import dataclasses
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from robustjax.analysis.canvas import house_style, settle

CELL_WIDTH, CELL_HEIGHT, NAMES_WIDTH, MAX_WIDTH = 0.72, 0.42, 1.6, 9.0
"""Inches."""

_DARK = 0.55
"""Rates from which a cell is so dark that its number is white."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One panel.

    Attributes:
        title: above it.
        rows: their names.
        columns: their names.
        values: rates in `[0, 1]`, row by row; None for a cell that was not measured.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


def draw_matrices(matrices: Sequence[Matrix]) -> Figure:
    """Draw matrices of the same rows and columns, as many side by side as there is room for.

    Args:
        matrices: at least one.

    Returns:
        The drawn figure.
    """
    with house_style():
        first = matrices[0]
        panel_width = CELL_WIDTH * len(first.columns)
        columns = min(max(1, int((MAX_WIDTH - NAMES_WIDTH) / panel_width)), len(matrices))
        lines = math.ceil(len(matrices) / columns)
        width = columns * panel_width + NAMES_WIDTH
        height = lines * (CELL_HEIGHT * len(first.rows) + 0.35) + 1.2
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
        figure = Figure(figsize=(width, height), layout=layout)
        axes = figure.subplots(lines, columns, squeeze=False)
        for index, ax in enumerate(axes.flat):
            if index < len(matrices):
                is_lowest = index + columns >= len(matrices)
                _draw_panel(ax, matrices[index], index % columns == 0, is_lowest)
            else:
                ax.set_axis_off()
        figure.supxlabel("Attacked with")
        settle(figure)
    return figure


def _draw_panel(ax: Axes, matrix: Matrix, has_rows: bool, has_columns: bool) -> None:
    shade = matplotlib.colormaps["Oranges"]
    ax.set_title(matrix.title)
    ax.set_xlim(-0.5, len(matrix.columns) - 0.5)
    ax.set_ylim(len(matrix.rows) - 0.5, -0.5)
    ax.grid(visible=False)
    for row, values in enumerate(matrix.values):
        for column, value in enumerate(values):
            rate = math.nan if value is None else value
            known = math.isfinite(rate)
            colour = shade(0.85 * rate) if known else "#ffffff"
            box = matplotlib.patches.Rectangle(
                (column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="#ffffff"
            )
            ax.add_patch(box)
            text = f"{rate:.0%}" if known else "-"
            ink = "#ffffff" if rate > _DARK else "#333333"
            ax.text(column, row, text, ha="center", va="center", color=ink)
    ax.set_xticks(range(len(matrix.columns)), matrix.columns if has_columns else ())
    ax.set_yticks(range(len(matrix.rows)), matrix.rows if has_rows else ())
    ax.tick_params(axis="x", labelrotation=40)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
