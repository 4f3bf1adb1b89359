"""Limits and ticks of the axes of drawings."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullLocator,
)

from robustjax.analysis.drawing import XAxis, YAxis
from robustjax.evaluation import metrics

LOGIT_TICKS = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)

LOWEST_PERCENT = -5
"""Power of ten from which a fraction is shown in percent; what is less needs too many zeros."""

FEW_DECADES = 3
"""Up to as many powers of ten on an axis, each is subdivided."""


def scale_x(ax: Axes, places: np.ndarray, x_axis: XAxis, panel_width: float) -> None:
    """Set limits and ticks of the abscissa.

    Args:
        ax: the axes; others of the figure share its abscissa.
        places: everything that is drawn on it.
        x_axis: what it is.
        panel_width: inches.
    """
    if x_axis.kind == "size":
        _scale_sizes(ax, x_axis, panel_width)
    elif x_axis.kind == "round":
        last = max(1.0, float(places.max(initial=0)))
        ax.set_xlim(-0.15 - 0.03 * last, last * 1.03 + 0.15)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    else:
        ax.set_xscale("log")
        low, high = _log_limits(places)
        ax.set_xlim(10**low, 10**high)
        _powers_of_ten(ax.xaxis, high - low)
        if x_axis.kind == "fraction" and low > LOWEST_PERCENT - 0.5:
            ax.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{100 * place:g}%"))


def scale_y(ax: Axes, values: np.ndarray, y_axis: YAxis) -> None:
    """Set limits and ticks of the ordinate.

    Args:
        ax: the axes; others of the figure share its ordinate.
        values: everything that is drawn on it, logits if the axis is; not all need be finite.
        y_axis: what it is.
    """
    values = values[np.isfinite(values)]
    if y_axis.kind == "fraction":
        _scale_fractions(ax, values, y_axis.from_zero)
    elif y_axis.kind == "logit":
        _scale_logits(ax, values)
    elif y_axis.kind == "flops":
        ax.set_yscale("log")
        low, high = _log_limits(values[values > 0])
        ax.set_ylim(10**low, 10**high)
        _powers_of_ten(ax.yaxis, high - low)
    else:
        _scale_numbers(ax, values, y_axis.reference)


def size_limits(places: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of model sizes, a margin around all of them."""
    low, high = min(places), max(places)
    margin = max(1.5, (high / low) ** 0.1)
    return low / margin, high * margin


def _scale_sizes(ax: Axes, x_axis: XAxis, panel_width: float) -> None:
    places = [place for place, _ in x_axis.ticks]
    ax.set_xscale("log")
    ax.set_xlim(*size_limits(places))
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_minor_locator(NullLocator())
    names = dict(x_axis.ticks)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda place, _: names.get(place, "")))
    room, small = _tick_room(places, panel_width), 0.82 * matplotlib.rcParams["font.size"]
    for other in ax.figure.axes:
        if room < 0.18:  # inches, less than the height of a slanted label
            other.tick_params(axis="x", labelrotation=90, labelsize=small)
        elif room < 0.48:  # less than the width of a label
            other.tick_params(axis="x", labelrotation=60)


def _tick_room(places: Sequence[float], panel_width: float) -> float:
    """Inches between the two closest tick labels of sizes."""
    low, high = size_limits(places)
    ordered = sorted(math.log(place) for place in places)
    inches_per_unit = 0.8 * panel_width / math.log(high / low)
    gaps = [(b - a) * inches_per_unit for a, b in zip(ordered, ordered[1:], strict=False)]
    return min(gaps, default=math.inf)


def _log_limits(values: np.ndarray) -> tuple[float, float]:
    """Powers of ten around all values, two whole ones among them at least."""
    low, high = _extent(np.log10(values), 0.0, 1.0)
    low, high = low - 0.1, high + 0.1
    while math.floor(high) - math.ceil(low) < 1:  # one tick does not make a scale
        below, above = math.ceil(low) - 1, math.floor(high) + 1
        if low - below < above - high:
            low = below - 0.05
        else:
            high = above + 0.05
    return low, high


def _powers_of_ten(axis: Axis, decades: float) -> None:
    axis.set_major_locator(LogLocator(numticks=6))
    # Far out, ticks inside a decade are a smear, and dear to draw.
    subdivisions = range(1, 10) if decades <= FEW_DECADES else (1,)
    axis.set_minor_locator(LogLocator(subs=subdivisions, numticks=30))
    axis.set_minor_formatter(FuncFormatter(lambda place, _: ""))


def _extent(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The least and the greatest value; what is given if there is none."""
    return (float(values.min()), float(values.max())) if values.size else (low, high)


def _scale_fractions(ax: Axes, values: np.ndarray, from_zero: bool) -> None:
    low = 0.0 if from_zero else min(0.8, math.floor(_extent(values, 0.0, 1.0)[0] * 10) / 10)
    ax.set_ylim(low - 0.03 * (1 - low), 1 + 0.03 * (1 - low))
    # Steps whose labels are whole percents.
    step = next(step for step in (0.05, 0.1, 0.2) if (1 - low) / step <= 6.5)
    ax.yaxis.set_major_locator(MultipleLocator(step))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:.0%}"))


def _scale_numbers(ax: Axes, values: np.ndarray, reference: float | None) -> None:
    if reference is not None:
        values = np.append(values, reference)
    low, high = _extent(values, 0.0, 1.0)
    margin = 0.08 * (high - low) or 0.5
    ax.set_ylim(low - margin, high + margin)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))


def _scale_logits(ax: Axes, values: np.ndarray) -> None:
    ticks = [float(tick) for tick in metrics.logit10(LOGIT_TICKS)]
    low, high = _extent(values, -1.0, 1.0)
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
