"""What is drawn inside a pair of axes: intervals, lines, markers, guides and fits."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from robustjax.analysis.drawing import Fit, Guides, Line, Panel, XAxis, YAxis
from robustjax.analysis.scales import size_limits
from robustjax.evaluation import metrics

MOST_MARKERS = 24
"""Points of a line from which on it is drawn without markers, and simplified."""

BOUND: dict[str, Any] = {
    "marker": "^", "markersize": 6, "markerfacecolor": "#ffffff", "linestyle": "none"
}  # fmt: skip
"""An open triangle that points to where the value must lie."""

RED = "#c1121f"
"""Of fitted lines."""

_FINENESS = 2000
"""A long line keeps its shape to this part of the panel's width and height."""

_CORNERS = (
    (0.03, 0.96, "left", "top"), (0.97, 0.96, "right", "top"),
    (0.03, 0.04, "left", "bottom"), (0.97, 0.04, "right", "bottom"),
)  # fmt: skip
"""Place and alignment of the text of fits, in parts of the panel."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line in plot units, in order, without the points that have no place on the axes.

    Attributes:
        line: where it is from.
        values: rows of abscissa, ordinate, lower and upper bound, and whether it is a bound.
    """

    line: Line
    values: np.ndarray

    @property
    def x(self) -> np.ndarray:
        """The abscissa of its points."""
        return self.values[0]

    @property
    def y(self) -> np.ndarray:
        """The ordinate of its points."""
        return self.values[1]


def curve(line: Line, x_axis: XAxis, y_axis: YAxis) -> Curve:
    """The line as numbers that are ready to be drawn."""
    points = [(p.x, p.y, p.low, p.high, p.is_bound) for p in line.points]
    values = np.array(points, dtype=np.float64).reshape(-1, 5).T
    values = values[:, np.argsort(values[0], kind="stable")]
    values[1:4] = _as_shown(values[1:4], y_axis)
    kept = np.isfinite(values[1])
    if x_axis.is_log:
        kept &= values[0] > 0
    if y_axis.is_log:
        kept &= values[1] > 0
    return Curve(line, values[:, kept])


def draw_panel(
    ax: Axes, panel: Panel, curves: Sequence[Curve], x_axis: XAxis, y_axis: YAxis, marks: str
) -> None:
    """Draw everything but the title into axes whose limits are set.

    Args:
        ax: the axes.
        panel: its guides and fits are drawn.
        curves: of its lines.
        x_axis: the abscissa.
        y_axis: the ordinate.
        marks: "band" or "bars".
    """
    if not any(curve.x.size for curve in curves):
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", color="#666666")
    if y_axis.reference is not None:
        ax.axhline(y_axis.reference, color="#666666", linewidth=0.8)
    if panel.guides:
        _draw_guides(ax, panel.guides)
    for index, curve in enumerate(curves):
        if curve.x.size:
            step = index - (len(curves) - 1) / 2
            x = _dodge(curve.x, step, x_axis) if marks == "bars" else curve.x
            _draw_intervals(ax, curve, x, marks, len(curves))
            _draw_line(ax, curve, x, "none" if panel.fits else "-")
    if panel.fits:
        _draw_fits(ax, panel.fits, curves, y_axis)


def _dodge(x: np.ndarray, steps: float, x_axis: XAxis) -> np.ndarray:
    """Shift points sideways a little, so that the bars of two lines do not cover each other."""
    if x_axis.kind == "round":
        return x + 0.06 * steps
    places = sorted(place for place, _ in x_axis.ticks)
    if not places:
        return x
    low, high = size_limits(places)
    closest = min((b / a for a, b in zip(places, places[1:], strict=False)), default=math.inf)
    return x * min((high / low) ** 0.02, closest**0.2) ** steps


def _draw_intervals(ax: Axes, curve: Curve, x: np.ndarray, marks: str, num_lines: int) -> None:
    line = curve.line
    # On a logit scale a bound of 0 or 1 is infinite: it is drawn to the edge of the panel.
    low, high = np.clip(curve.values[2:4], *ax.get_ylim())
    if marks == "bars" or len(x) == 1:
        alpha = 0.8 if marks == "bars" else 0.6
        ax.vlines(x, low, high, color=line.colour, linewidth=1.1, alpha=alpha)
        return
    # Many bands on top of each other must not hide the lines.
    veil = min(0.11, 0.5 / num_lines)
    if len(x) <= MOST_MARKERS:
        ax.fill_between(x, low, high, color=line.colour, alpha=veil, linewidth=0)
        return
    for part in _finite_parts(low + high):
        below, above = _simplified(ax, x[part], low[part]), _simplified(ax, x[part], high[part])
        corners = np.concatenate([below, above[::-1]])
        band = PolyCollection([corners], color=line.colour, alpha=veil, linewidth=0)
        ax.add_collection(band, autolim=False)  # the limits are set, and finding them is slow


def _finite_parts(values: np.ndarray) -> list[slice]:
    """Where there is no gap."""
    return list(np.ma.clump_unmasked(np.ma.masked_invalid(values)))


def _draw_line(ax: Axes, curve: Curve, x: np.ndarray, style: str) -> None:
    line, y, bounds = curve.line, curve.y, curve.values[4] == 1
    if len(x) <= MOST_MARKERS or style == "none":  # points that nothing joins need markers
        known = np.flatnonzero(~bounds).tolist()
        ax.plot(x, y, linestyle=style, color=line.colour, marker=line.marker, markevery=known)
    else:
        ax.plot(*_simplified(ax, x, y).T, color=line.colour)
    if bounds.any():
        ax.plot(x[bounds], y[bounds], color=line.colour, zorder=3, **BOUND)


def _simplified(ax: Axes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The corners that the eye needs: a file holds no point that no printer could show."""
    shown = ax.transScale + ax.transLimits + Affine2D().scale(_FINENESS)
    path = Path(shown.transform(np.column_stack([x, y])))
    path.simplify_threshold = 1.0
    vertices = np.asarray(path.cleaned(simplify=True).vertices)
    return np.asarray(shown.inverted().transform(vertices[:-1]))  # the last one ends the path


def _draw_guides(ax: Axes, guides: Guides) -> None:
    x = np.log10(ax.get_xlim())
    y = np.log10(ax.get_ylim())
    offsets = [b - guides.slope * a for a in x for b in y]
    # Lines through the corners themselves would not be seen.
    for offset in np.linspace(min(offsets), max(offsets), guides.count + 2)[1:-1]:
        ax.plot(10**x, 10 ** (offset + guides.slope * x), color="#bbbbbb", linewidth=0.5,
                linestyle=(0, (4, 4)), zorder=0.5, scalex=False, scaley=False)  # fmt: skip


def _draw_fits(ax: Axes, fits: Sequence[Fit], curves: Sequence[Curve], y_axis: YAxis) -> None:
    shown = ax.transScale + ax.transLimits
    taken = [shown.transform(curve.values[:2].T) for curve in curves]
    for fit in fits:
        y = np.array([fit.y0, fit.y1])
        ends = np.column_stack([[fit.x0, fit.x1], _as_shown(y, y_axis)])
        ax.plot(*ends.T, color=RED, linewidth=1.2, linestyle="--", scalex=False, scaley=False)
        start, end = np.asarray(shown.transform(ends))
        taken.append(start + np.linspace(0, 1, 20)[:, None] * (end - start))
    if y_axis.reference is not None:
        height = shown.transform((ax.get_xlim()[0], y_axis.reference))[1]
        taken.append(np.array([(part, height) for part in np.linspace(0, 1, 20)]))
    right, top, across, along = _freest_corner(np.concatenate(taken))
    text = "\n".join(fit.label for fit in fits)
    ax.text(right, top, text, transform=ax.transAxes, ha=across, va=along, color=RED)


def _as_shown(values: np.ndarray, y_axis: YAxis) -> np.ndarray:
    return metrics.logit10(values) if y_axis.kind == "logit" else values


def _freest_corner(taken: np.ndarray) -> tuple[float, float, str, str]:
    """The corner whose text is farthest from what lies in the panel, in parts of the panel."""

    def room(corner: tuple[float, float, str, str]) -> float:
        # The middle of a short text lies farther inside.
        middle = (0.15 if corner[0] < 0.5 else 0.85, corner[1])
        return float(np.min(np.hypot(*(taken - middle).T)))

    return max(_CORNERS, key=room)
