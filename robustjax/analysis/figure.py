"""What a figure of the report is: words, numbers, and a drawing that is made when asked for."""

import dataclasses
import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from robustjax.analysis import canvas, captions, heatmap
from robustjax.analysis.drawing import Panel, XAxis, YAxis
from robustjax.analysis.groups import Row
from robustjax.analysis.publication import publication


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Panels of lines that share their axes.

    Attributes:
        panels: at least one.
        x_axis: the abscissa.
        y_axis: the ordinate.
        legend_title: what distinguishes the lines.
        marks: draw intervals as bands along the lines, or as bars side by side.
        columns: panels a row.
    """

    panels: Sequence[Panel]
    x_axis: XAxis
    y_axis: YAxis
    legend_title: str
    marks: canvas.Marks
    columns: int = 3

    def draw(self) -> Figure:
        """All panels in one figure."""
        return canvas.draw(
            self.panels, self.x_axis, self.y_axis, self.legend_title, self.marks, self.columns
        )

    def for_a_paper(self) -> dict[str, bytes]:
        """Each panel as PDF of the size of a column, with legend and without, by name."""
        return {
            f"{number}{'-legend' if has_legend else ''}": publication(
                panel, self.x_axis, self.y_axis, self.legend_title, self.marks, has_legend
            )
            for number, panel in enumerate(self.panels, start=1)
            for has_legend in (False, True)
        }


@dataclasses.dataclass(frozen=True)
class MatrixDrawing:
    """Matrices of rates side by side."""

    matrices: Sequence[heatmap.Matrix]

    def draw(self) -> Figure:
        """All matrices in one figure."""
        return heatmap.draw_matrices(self.matrices)

    def for_a_paper(self) -> dict[str, bytes]:
        """The figure as PDF: a matrix has no legend, and its size follows from its cells."""
        return {"1": canvas.pdf(self.draw())}


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """A figure with its caption and the numbers behind it.

    Attributes:
        stem: file name of figure and table, without group and ending.
        title: headline.
        caption: plain text.
        drawing: what is drawn; None if there is nothing to draw.
        rows: the table behind it.
    """

    stem: str
    title: str
    caption: str
    drawing: Drawing | MatrixDrawing | None
    rows: list[Row]


def lines_figure(
    stem: str,
    title: str,
    panels: Sequence[Panel],
    x_axis: XAxis,
    y_axis: YAxis,
    legend_title: str,
    marks: canvas.Marks,
    rows: list[Row],
    *sentences: str,
    columns: int = 3,
) -> ReportFigure:
    """A figure of lines, drawn if any of them has a point; the sentences are its caption."""
    points = (point for panel in panels for line in panel.lines for point in line.points)
    drawn = any(math.isfinite(point.y) for point in points)
    return ReportFigure(
        stem,
        title,
        captions.join(*sentences),
        Drawing(panels, x_axis, y_axis, legend_title, marks, columns) if drawn else None,
        rows,
    )
